//! What to ask the API server next: the transitions of one followed resource, as
//! a state machine without clock, chance and IO.
//!
//! ```text
//!   ┌──────────▶ Stream or List ──complete──▶ Watch ◀──ahead or equal── Newest
//!   │                 │ fails                   │ ends in any way         │  ▲
//!   │                 └── waits, again          └─────────────────────────┼──┘
//!   └── 410, an error event, the server away or behind us ────────────────┘
//! ```
//!
//! A watch that ended is not simply taken up again: from a version that the
//! server does not have yet, since it was restored from a backup, a watch answers
//! 200 and then nothing. So the server is asked for its newest version first
//! (a list of one object), and if that lies behind ours everything is listed
//! again. The same is done when the server could not be reached: while it was
//! away it may have been restored and have come past our version since. Only a
//! restore that nobody saw, between two requests that both succeeded, and that
//! has come past our version by then, is not found out.

use std::time::Duration;

use super::backoff::Wait;
use super::version::is_behind;

/// Streams that may fail in a row before a list is tried instead.
const STREAM_ATTEMPTS: u32 = 2;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Everything as a watch that begins with what there is
    /// (`sendInitialEvents`).
    Stream,
    /// Everything as a list.
    List {
        /// In pages; otherwise in one answer.
        paged: bool,
    },
    /// The server's version.
    Newest,
    /// What changes from a version on.
    Watch {
        /// The version.
        from: String,
    },
}

/// How a request ended that did not end well, or a watch, which always does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The watch ended in order.
    Closed,
    /// The connection broke amid the answer.
    Cut,
    /// Nothing came for too long.
    Silent,
    /// There was no answer.
    Unreachable,
    /// An HTTP status other than 200.
    Status {
        code: u16,
        retry_after: Option<Duration>,
    },
    /// An ERROR event in a watch.
    ErrorEvent { code: u16 },
    /// Not what an API server says.
    Nonsense,
    /// The collection wants a new list.
    ListAgain,
}

/// What comes after an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Next {
    /// Before the next request.
    pub(super) wait: Wait,
    /// Our credentials, or what we know of the server, may be out of date.
    pub(super) renew: bool,
    /// The resource is not there, or not for us.
    pub(super) unavailable: bool,
}

/// The state of one followed resource.
#[derive(Debug)]
pub(super) struct Machine {
    plan: Plan,
    /// What we have is complete as of this version.
    version: Option<String>,
    streams: bool,
    failed_streams: u32,
    paged: bool,
    failures: u32,
    /// May be missing.
    optional: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Everything,
    Newest,
    Watch,
}

impl Machine {
    /// Of a resource that is `optional`, 403 and 404 are no failures. `streams`
    /// says whether streaming lists are tried.
    pub(super) fn new(optional: bool, streams: bool) -> Self {
        Self {
            plan: Plan::Everything,
            version: None,
            streams,
            failed_streams: 0,
            paged: true,
            failures: 0,
            optional,
        }
    }

    /// The request to make now.
    pub(super) fn ask(&self) -> Ask {
        match (self.plan, &self.version) {
            (Plan::Watch, Some(version)) => Ask::Watch {
                from: version.clone(),
            },
            (Plan::Newest, Some(_)) => Ask::Newest,
            (Plan::Everything, _) | (_, None) => {
                if self.streams && self.failed_streams < STREAM_ATTEMPTS {
                    Ask::Stream
                } else {
                    Ask::List { paged: self.paged }
                }
            }
        }
    }

    /// Whether it was complete once.
    pub(super) fn was_listed(&self) -> bool {
        self.version.is_some()
    }

    /// How often in a row it has failed.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Everything has come, as of this version. A stream goes on as a watch.
    pub(super) fn listed(&mut self, version: String) {
        self.version = Some(version);
        self.plan = Plan::Watch;
        self.paged = true;
        self.failed_streams = 0;
        // The failures count on: a list that is followed by no watch is none.
    }

    /// The server's newest version. The answer is whether it lies behind ours.
    pub(super) fn newest(&mut self, server: &str) -> bool {
        let behind = self
            .version
            .as_deref()
            .and_then(|ours| is_behind(server, ours));
        self.plan = match behind {
            Some(false) => Plan::Watch,
            Some(true) | None => Plan::Everything,
        };
        behind == Some(true)
    }

    /// An event or bookmark of the watch has come. The answer is false if its
    /// version lies behind: this is not the history that we know.
    pub(super) fn heard(&mut self, version: &str) -> bool {
        if let Some(ours) = &mut self.version {
            if is_behind(version, ours) == Some(true) {
                return false;
            }
            ours.clear();
            ours.push_str(version);
        }
        self.failures = 0;
        true
    }

    /// The request has ended. `steady` says that it was a watch that lived long.
    pub(super) fn ended(&mut self, end: &End, steady: bool) -> Next {
        let asked = self.ask();
        if steady {
            self.failures = 0;
        }
        let unavailable = self.optional
            && matches!(
                end,
                End::Status {
                    code: 403 | 404,
                    ..
                }
            );
        let mut orderly = steady && *end == End::Closed;
        match asked {
            Ask::Stream => {
                if !says_nothing_of_streams(end) {
                    self.failed_streams += 1;
                }
                if !unavailable && refuses_streams(end) {
                    self.streams = false;
                    orderly = true;
                }
            }
            Ask::List { .. } => {
                // The pages took longer than the server keeps old versions; in
                // one piece it does not depend on that.
                if matches!(end, End::Status { code: 410, .. }) {
                    self.paged = false;
                }
            }
            Ask::Newest => {
                if *end == End::Unreachable || is_gone(end) {
                    self.plan = Plan::Everything;
                }
            }
            Ask::Watch { .. } => {
                let everything = is_gone(end)
                    || matches!(
                        end,
                        End::Unreachable | End::ErrorEvent { .. } | End::Nonsense | End::ListAgain
                    );
                self.plan = if everything {
                    Plan::Everything
                } else {
                    Plan::Newest
                };
            }
        }
        if unavailable {
            self.plan = Plan::Everything;
        }
        if unavailable || !orderly {
            self.failures = self.failures.saturating_add(1);
        }
        let failures = self.failures;
        let wait = if unavailable {
            Wait::Unavailable { failures }
        } else if orderly {
            Wait::No
        } else {
            Wait::Backoff {
                failures,
                away: *end == End::Unreachable,
                asked: retry_after(end),
            }
        };
        Next {
            wait,
            renew: matches!(end, End::Unreachable | End::Status { code: 401, .. }),
            unavailable,
        }
    }
}

fn retry_after(end: &End) -> Option<Duration> {
    if let End::Status { retry_after, .. } = end {
        *retry_after
    } else {
        None
    }
}

/// The server does not offer streaming lists, or cannot do them: the status of a
/// server without the feature (422) or with another idea of the request, or the
/// error event of one whose etcd is too old. A stream that falls silent is of a
/// server that ignores the parameter and never says that the beginning is
/// complete.
fn refuses_streams(end: &End) -> bool {
    matches!(
        end,
        End::Status {
            code: 400 | 405 | 406 | 415 | 422 | 500 | 501,
            ..
        } | End::ErrorEvent { .. }
            | End::Silent
            | End::Nonsense
    )
}

/// The trouble would befall a list as well.
fn says_nothing_of_streams(end: &End) -> bool {
    matches!(
        end,
        End::Unreachable
            | End::Status {
                code: 401 | 403 | 404 | 429 | 503,
                ..
            }
    )
}

fn is_gone(end: &End) -> bool {
    matches!(
        end,
        End::Status { code: 410, .. } | End::ErrorEvent { code: 410 }
    )
}

#[cfg(test)]
mod tests;
