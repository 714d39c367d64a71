//! The objects of one resource, their history, and who watches them.

use std::collections::{BTreeMap, HashMap, VecDeque};

use futures_util::stream::poll_fn;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::Response;
use hyper::body::{Bytes, Frame};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Fault;
use super::answers::{
    Body, Sent, answer_of, bookmark, error_event, line, name, response, status, streamed,
};
use super::selection::Selection;

/// Lines that wait for a watcher.
const LINES: usize = 4096;

#[derive(Default)]
pub(super) struct Resource {
    pub(super) objects: BTreeMap<String, Value>,
    pub(super) history: Vec<Change>,
    /// Watches from before this version are refused.
    pub(super) oldest: u64,
    pub(super) watchers: Vec<Watcher>,
    pub(super) faults: VecDeque<Fault>,
    /// What every request is answered with.
    pub(super) refused: Option<u16>,
    /// Streaming lists are not offered.
    pub(super) without_streams: bool,
}

/// An object before and after.
pub(super) struct Change {
    version: u64,
    before: Option<Value>,
    after: Option<Value>,
}

pub(super) struct Watcher {
    selection: Selection,
    sender: mpsc::Sender<Sent>,
}

impl Watcher {
    /// False when nobody listens.
    pub(super) fn send(&self, sent: Sent) -> bool {
        self.sender.try_send(sent).is_ok()
    }
}

impl Change {
    /// As one who has made this selection hears of it: what comes into it was
    /// added, what falls out of it is deleted, as of this version.
    fn told(&self, selection: &Selection) -> Option<String> {
        let selected = |object: &&Value| selection.selects(object);
        let before = self.before.as_ref().filter(selected);
        let after = self.after.as_ref().filter(selected);
        match (before, after) {
            (None, None) => None,
            (None, Some(object)) => Some(line("ADDED", object)),
            (Some(_), Some(object)) => Some(line("MODIFIED", object)),
            (Some(object), None) => {
                let mut object = object.clone();
                object["metadata"]["resourceVersion"] = self.version.to_string().into();
                Some(line("DELETED", &object))
            }
        }
    }
}

impl Resource {
    pub(super) fn apply(&mut self, version: u64, mut object: Value) {
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let before = self.objects.insert(name(&object), object.clone());
        self.change(version, before, Some(object));
    }

    pub(super) fn delete(&mut self, version: u64, name: &str) {
        let object = self.objects.remove(name).unwrap();
        self.change(version, Some(object), None);
    }

    fn change(&mut self, version: u64, before: Option<Value>, after: Option<Value>) {
        let change = Change {
            version,
            before,
            after,
        };
        self.watchers.retain(|watcher| {
            let told = change.told(&watcher.selection);
            told.is_none_or(|line| watcher.send(Ok(Frame::data(line.into()))))
        });
        self.history.push(change);
    }

    /// Tells every watcher this.
    pub(super) fn send(&mut self, line: &str) {
        self.watchers.retain(|watcher| {
            let line = Bytes::copy_from_slice(line.as_bytes());
            watcher.send(Ok(Frame::data(line)))
        });
    }

    pub(super) fn list(
        &self,
        version: u64,
        query: &HashMap<String, String>,
        selection: &Selection,
    ) -> Response<Body> {
        let number = |name: &str| query.get(name).map(|n| n.parse::<u64>().unwrap());
        let limit = number("limit").unwrap_or(u64::MAX);
        let (version, from) = match query.get("continue") {
            None => (version, 0),
            Some(token) => {
                let (version, from) = token.split_once(':').unwrap();
                let version = version.parse().unwrap();
                if version < self.oldest {
                    return status(410, None);
                }
                (version, from.parse().unwrap())
            }
        };
        let selected = self.objects.values().filter(|o| selection.selects(o));
        let items: Vec<_> = selected.skip(from).collect();
        let page: Vec<_> = items
            .iter()
            .take(usize::try_from(limit).unwrap_or(usize::MAX))
            .collect();
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if page.len() < items.len() {
            metadata["continue"] = format!("{version}:{}", from + page.len()).into();
        }
        let list = json!({"metadata": metadata, "items": page});
        answer_of(200, Full::new(list.to_string().into()))
    }

    pub(super) fn watch(
        &mut self,
        version: u64,
        query: &HashMap<String, String>,
        selection: Selection,
    ) -> Response<Body> {
        let (sender, mut receiver) = mpsc::channel(LINES);
        let send = |line: String| sender.try_send(Ok(Frame::data(line.into()))).unwrap();
        let from = query.get("resourceVersion").map_or("", String::as_str);
        if query.contains_key("sendInitialEvents") {
            if query.get("resourceVersionMatch").map(String::as_str) != Some("NotOlderThan") {
                return status(422, None);
            }
            let selected = self.objects.values().filter(|o| selection.selects(o));
            let initial = selected.map(|object| line("ADDED", object));
            send(initial.collect());
            send(line("BOOKMARK", &bookmark(version, true)));
        } else {
            let from: u64 = from.parse().unwrap();
            if from < self.oldest {
                send(error_event(410));
                drop(sender);
                return streamed(receiver);
            }
            let missed = self.history.iter().filter(|change| change.version > from);
            send(
                missed
                    .filter_map(|change| change.told(&selection))
                    .collect(),
            );
            // In the future: silence, even when something happens.
            if from > version {
                let mut silent = Some(sender);
                let body = StreamBody::new(poll_fn(move |cx| {
                    let _keep = &mut silent;
                    receiver.poll_recv(cx)
                }));
                return response(200, BodyExt::boxed(body));
            }
        }
        self.watchers.push(Watcher { selection, sender });
        streamed(receiver)
    }
}
