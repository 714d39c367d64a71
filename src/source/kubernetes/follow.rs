//! Follows one resource: makes the requests that the [`Machine`] asks for and
//! hands to the [`Collection`] what comes.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::RETRY_AFTER;
use hyper::{Request, Response, StatusCode};
use kube::client::Body;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::answer::{Lines, whole};
use super::backoff::{Timing, Wait};
use super::chance::Chance;
use super::collect::{Part, Update};
use super::collection::{Collection, Deleted};
use super::connection::{Connection, chain};
use super::machine::{Ask, End, Machine};
use super::resource::Resource;
use super::wire::{Head, Line, Page, Status, Told};

/// Failures in a row after which it is told as a warning: a restart of the API
/// server is over before.
const WARN_AFTER: u32 = 5;

/// Longest body of an error that is read.
const PATIENCE_FOR_ERRORS: Duration = Duration::from_secs(5);

/// One followed resource.
pub(super) struct Follower<C> {
    connection: Arc<Connection>,
    resource: Resource,
    part: Part,
    collection: C,
    updates: mpsc::Sender<Update>,
    timing: Timing,
    chance: Chance,
    machine: Machine,
    settled: bool,
    /// What was told of the present trouble.
    told: Option<String>,
}

/// A request that did not go on.
enum Stop {
    /// So it ended.
    End(End, String),
    /// Nobody receives the updates.
    Unwanted,
}

impl From<End> for Stop {
    fn from(end: End) -> Self {
        let why = match &end {
            End::Closed => "the watch was closed",
            End::Cut => "the connection broke",
            End::Silent => "the API server has fallen silent",
            End::Unreachable => "the API server cannot be reached",
            End::Status { .. } => "the API server refuses",
            End::ErrorEvent { .. } => "the watch has failed",
            End::Nonsense => "the answer is not an API server's",
            End::ListAgain => "what is left has to be listed",
        };
        Self::End(end, why.to_owned())
    }
}

impl<C: Collection> Follower<C> {
    /// Follows `resource`, which is a part of the first state, for `collection`.
    pub(super) fn new(
        connection: Arc<Connection>,
        resource: Resource,
        part: Part,
        collection: C,
        updates: mpsc::Sender<Update>,
        timing: Timing,
    ) -> Self {
        // Of what need only exist no stream is wanted: it would tell all.
        let machine = Machine::new(resource.without.is_some(), !resource.existence);
        Self {
            connection,
            resource,
            part,
            collection,
            updates,
            timing,
            chance: Chance::new(),
            machine,
            settled: false,
            told: None,
        }
    }

    /// Follows until nobody receives the updates any more.
    pub(super) async fn run(mut self) {
        loop {
            let begun = Instant::now();
            let watching = matches!(self.machine.ask(), Ask::Watch { .. });
            let (end, why) = match self.step().await {
                Ok(()) => continue,
                Err(Stop::Unwanted) => return,
                Err(Stop::End(end, why)) => (end, why),
            };
            // A stream becomes a watch on the way.
            let watching = watching || matches!(self.machine.ask(), Ask::Watch { .. });
            let steady = watching && begun.elapsed() >= self.timing.steady;
            let next = self.machine.ended(&end, steady);
            self.tell(&end, &why, next.wait);
            if next.unavailable {
                self.collection.unavailable();
            }
            let answered = !matches!(end, End::Unreachable);
            if self.resource.without.is_some() && answered && self.settle().await.is_err() {
                return;
            }
            if next.renew {
                self.connection.renew().await;
            }
            let delay = self.timing.delay(next.wait, self.chance.next());
            sleep(delay).await;
        }
    }

    /// Makes one request and follows it to its end.
    async fn step(&mut self) -> Result<(), Stop> {
        let ask = self.machine.ask();
        debug!(resource = self.resource.name, ?ask, "asking the API server");
        match ask {
            Ask::Stream => self.stream(&ask).await.map(|never| match never {}),
            Ask::Watch { .. } => {
                let lines = self.open(&ask).await?;
                self.watch(lines).await.map(|never| match never {})
            }
            Ask::List { paged } => self.list(paged).await,
            Ask::Newest => self.newest().await,
        }
    }

    async fn list(&mut self, paged: bool) -> Result<(), Stop> {
        self.collection.begin();
        let mut next: Option<String> = None;
        let mut version = None;
        loop {
            let request = self.resource.list(paged, next.as_deref());
            let answer = self.send(request).await?;
            let text = whole(answer.into_body(), self.timing.answer).await?;
            let page: Page<'_> =
                serde_json::from_slice(&text).map_err(|error| nonsense("list", &error))?;
            for object in page.items.into_iter().flatten() {
                let Head { metadata } = serde_json::from_str(object.get())
                    .map_err(|error| nonsense("object of a list", &error))?;
                self.collection.listed(&metadata, object);
            }
            // All pages are of the version of the first.
            let version = version.get_or_insert(page.metadata.resource_version);
            next = page.metadata.next.filter(|token| !token.is_empty());
            if next.is_none() || self.resource.existence {
                let version = std::mem::take(version);
                return self.complete(version).await;
            }
        }
    }

    async fn newest(&mut self) -> Result<(), Stop> {
        let answer = self.send(self.resource.newest()).await?;
        let text = whole(answer.into_body(), self.timing.answer).await?;
        let page: Page<'_> =
            serde_json::from_slice(&text).map_err(|error| nonsense("list", &error))?;
        let server = page.metadata.resource_version;
        if self.machine.newest(&server) {
            warn!(
                resource = self.resource.name,
                server,
                "the API server has gone back to an older state: everything is listed again"
            );
        }
        Ok(())
    }

    /// A list that is told as a watch, and the watch that it becomes.
    async fn stream(&mut self, ask: &Ask) -> Result<Infallible, Stop> {
        let mut lines = self.open(ask).await?;
        self.collection.begin();
        loop {
            let text = lines.next(self.timing.answer).await?;
            let (told, head, line) = read(text)?;
            match told {
                Told::Applied => self.collection.listed(&head, line.object),
                Told::Deleted => self.collection.unlisted(&head),
                Told::Bookmark if head.ends_initial_events() => {
                    break self.complete(head.resource_version).await?;
                }
                Told::Bookmark => {}
                Told::Error => return Err(error_event(line.object.get())),
            }
        }
        self.watch(lines).await
    }

    async fn watch(&mut self, mut lines: Lines) -> Result<Infallible, Stop> {
        loop {
            let text = lines.next(self.timing.silence).await?;
            let (told, head, line) = read(text)?;
            if told == Told::Error {
                return Err(error_event(line.object.get()));
            }
            let in_order = self.machine.heard(&head.resource_version);
            // What was deleted may bear the version of its last change.
            if !in_order && told != Told::Deleted {
                let why = "versions run backwards: this is another history".to_owned();
                return Err(Stop::End(End::Nonsense, why));
            }
            let update = match told {
                Told::Applied => self.collection.applied(&head, line.object),
                Told::Deleted => match self.collection.deleted(&head) {
                    Deleted::Update(update) => update,
                    Deleted::ListAgain => return Err(End::ListAgain.into()),
                },
                Told::Bookmark | Told::Error => None,
            };
            self.well();
            if let Some(update) = update {
                self.send_update(update).await?;
            }
        }
    }

    async fn complete(&mut self, version: String) -> Result<(), Stop> {
        debug!(
            resource = self.resource.name,
            version, "the list is complete"
        );
        let update = self.collection.complete();
        self.machine.listed(version);
        self.well();
        if let Some(update) = update {
            self.send_update(update).await?;
        }
        self.settle().await
    }

    /// Says once that this part of the first state is in.
    async fn settle(&mut self) -> Result<(), Stop> {
        if self.settled {
            return Ok(());
        }
        self.settled = true;
        self.send_update(Update::settled(self.part)).await
    }

    async fn send_update(&self, update: Update) -> Result<(), Stop> {
        let sent = self.updates.send(update).await;
        sent.map_err(|_| Stop::Unwanted)
    }

    /// Begins a watch or a stream.
    async fn open(&mut self, ask: &Ask) -> Result<Lines, Stop> {
        let lasts = self.timing.watch_for(self.chance.next());
        let request = self.resource.watch(ask, lasts);
        Ok(Lines::new(self.send(request).await?.into_body()))
    }

    /// Sends a request; the answer is a success.
    async fn send(&self, request: Option<Request<Vec<u8>>>) -> Result<Response<Body>, Stop> {
        let request = request.ok_or_else(|| {
            let why = "the request cannot be written".to_owned();
            Stop::End(End::Nonsense, why)
        })?;
        let unreachable = |why| Stop::End(End::Unreachable, why);
        let answer = timeout(self.timing.answer, self.connection.send(request))
            .await
            .map_err(|_| unreachable("no answer".to_owned()))?
            .map_err(|error| unreachable(chain(error.source().unwrap_or(&error))))?;
        if answer.status() == StatusCode::OK {
            return Ok(answer);
        }
        Err(refused(answer).await)
    }

    /// Tells of trouble, each kind once as long as it lasts.
    fn tell(&mut self, end: &End, why: &str, wait: Wait) {
        let resource = self.resource.name;
        let orderly = matches!(end, End::Closed | End::ListAgain)
            || matches!(
                end,
                End::Status { code: 410, .. } | End::ErrorEvent { code: 410 }
            );
        let failures = self.machine.failures();
        // A server that has just started denies everything for a while.
        let lasts = failures >= WARN_AFTER || !self.machine.was_listed();
        match (wait, self.resource.without) {
            (Wait::Unavailable { .. }, Some(without)) => {
                if lasts && self.told.as_deref() != Some(without) {
                    warn!(
                        resource,
                        error = why,
                        consequence = without,
                        "cannot be followed"
                    );
                    self.told = Some(without.to_owned());
                }
            }
            // The list that comes instead tells the same.
            (Wait::No, _) => debug!(resource, error = why, "the request has ended"),
            _ if orderly && failures < WARN_AFTER => {
                debug!(resource, error = why, "the request has ended");
            }
            (_, _) => {
                if lasts && self.told.is_none() {
                    warn!(
                        resource,
                        error = why,
                        "cannot be followed; the last good state stays in force, and it is tried again"
                    );
                    self.told = Some(why.to_owned());
                } else {
                    debug!(resource, error = why, failures, "to be tried again");
                }
            }
        }
    }

    /// The trouble is over.
    fn well(&mut self) {
        if self.told.take().is_some() {
            info!(resource = self.resource.name, "is followed again");
        }
    }
}

/// The parts of a watch's line.
fn read(text: &[u8]) -> Result<(Told, super::wire::HeadMeta, Line<'_>), Stop> {
    let line: Line<'_> =
        serde_json::from_slice(text).map_err(|error| nonsense("line of a watch", &error))?;
    let told = line.told().ok_or_else(|| {
        let why = "an event of a type that the API does not have".to_owned();
        Stop::End(End::Nonsense, why)
    })?;
    let Head { metadata } = if told == Told::Error {
        Head::default()
    } else {
        serde_json::from_str(line.object.get())
            .map_err(|error| nonsense("object of a watch", &error))?
    };
    Ok((told, metadata, line))
}

fn nonsense(what: &str, error: &serde_json::Error) -> Stop {
    Stop::End(End::Nonsense, format!("a {what} does not parse: {error}"))
}

fn error_event(object: &str) -> Stop {
    let status: Status = serde_json::from_str(object).unwrap_or_default();
    let code = status.code;
    Stop::End(End::ErrorEvent { code }, status.message)
}

/// Reads the status that comes with an error.
async fn refused(answer: Response<Body>) -> Stop {
    let code = answer.status();
    let header = answer.headers().get(RETRY_AFTER);
    let header = header.and_then(|value| value.to_str().ok()?.parse().ok());
    let body = whole(answer.into_body(), PATIENCE_FOR_ERRORS).await;
    let body = Bytes::from(body.unwrap_or_default());
    let status: Status = serde_json::from_slice(&body).unwrap_or_default();
    let seconds = header.or_else(|| status.details?.retry_after_seconds);
    let why = format!("{code}: {}", status.message);
    let end = End::Status {
        code: code.as_u16(),
        retry_after: seconds.map(Duration::from_secs),
    };
    Stop::End(end, why.trim_end_matches(": ").to_owned())
}
