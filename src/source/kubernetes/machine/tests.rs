use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn status(code: u16) -> End {
    End::Status {
        code,
        retry_after: None,
    }
}

fn watch(from: &str) -> Ask {
    let from = from.to_owned();
    Ask::Watch { from }
}

/// A machine that watches from version 10.
fn watching() -> Machine {
    let mut machine = Machine::new(false, true);
    machine.listed("10".to_owned());
    assert_eq!(machine.ask(), watch("10"));
    machine
}

/// What is asked for after a watch, or a request in its place, has ended so.
fn after(mut machine: Machine, end: &End) -> Ask {
    machine.ended(end, false);
    machine.ask()
}

#[test]
fn a_watch_goes_on_from_what_was_heard_last() {
    let mut machine = watching();
    assert!(machine.heard("12"));
    assert!(machine.heard("12"));
    assert_eq!(machine.ask(), watch("12"));
    // This cannot be the same history.
    assert!(!machine.heard("11"));
    assert_eq!(machine.ask(), watch("12"));
}

#[test]
fn the_servers_version_is_asked_for_before_a_watch_is_taken_up() {
    for end in [End::Closed, End::Cut, End::Silent, status(503), status(429)] {
        assert_eq!(after(watching(), &end), Ask::Newest, "{end:?}");
    }
    let newest = |server: &str| {
        let mut machine = watching();
        machine.ended(&End::Cut, false);
        let behind = machine.newest(server);
        (behind, machine.ask())
    };
    assert_eq!(newest("10"), (false, watch("10")));
    assert_eq!(newest("99"), (false, watch("10")));
    assert_eq!(newest("9"), (true, Ask::Stream));
    // What cannot be compared is not trusted.
    assert_eq!(newest("ten"), (false, Ask::Stream));
}

#[test]
fn everything_is_listed_when_changes_may_be_lost() {
    for end in [
        End::ErrorEvent { code: 410 },
        End::ErrorEvent { code: 500 },
        status(410),
        End::Unreachable,
        End::Nonsense,
        End::ListAgain,
    ] {
        assert_eq!(after(watching(), &end), Ask::Stream, "{end:?}");
    }
    let mut machine = watching();
    machine.ended(&End::Cut, false);
    assert_eq!(machine.ask(), Ask::Newest);
    assert_eq!(after(machine, &End::Unreachable), Ask::Stream);
}

#[test]
fn a_server_without_streams_is_asked_for_lists_at_once_and_for_good() {
    for end in [status(422), End::ErrorEvent { code: 500 }, End::Silent] {
        let mut machine = Machine::new(false, true);
        assert_eq!(machine.ask(), Ask::Stream);
        assert_eq!(machine.ended(&end, false).wait, Wait::No, "{end:?}");
        assert_eq!(machine.ask(), Ask::List { paged: true });
        machine.listed("5".to_owned());
        assert_eq!(
            after(machine, &End::ErrorEvent { code: 410 }),
            Ask::List { paged: true }
        );
    }
}

#[test]
fn streams_that_break_are_replaced_by_a_list_once() {
    let mut machine = Machine::new(false, true);
    for _ in 0..STREAM_ATTEMPTS {
        assert_eq!(machine.ask(), Ask::Stream);
        machine.ended(&End::Cut, false);
    }
    assert_eq!(machine.ask(), Ask::List { paged: true });
    machine.listed("5".to_owned());
    assert_eq!(after(machine, &End::ErrorEvent { code: 410 }), Ask::Stream);

    // What would befall a list as well says nothing against streams.
    let mut machine = Machine::new(false, true);
    for end in [End::Unreachable, status(429), status(503), status(401)] {
        for _ in 0..5 {
            machine.ended(&end, false);
            assert_eq!(machine.ask(), Ask::Stream, "{end:?}");
        }
    }
}

#[test]
fn a_list_whose_pages_expire_is_asked_for_in_one() {
    let mut machine = Machine::new(false, false);
    assert_eq!(machine.ask(), Ask::List { paged: true });
    machine.ended(&status(410), false);
    assert_eq!(machine.ask(), Ask::List { paged: false });
    machine.ended(&status(500), false);
    assert_eq!(machine.ask(), Ask::List { paged: false });
    machine.listed("5".to_owned());
    assert_eq!(
        after(machine, &End::ErrorEvent { code: 410 }),
        Ask::List { paged: true }
    );
}

#[test]
fn failures_count_until_something_is_heard() {
    let mut machine = Machine::new(false, true);
    for failures in 1..4 {
        let next = machine.ended(&End::Unreachable, false);
        assert_eq!(
            next.wait,
            Wait::Backoff {
                failures,
                away: true,
                asked: None
            }
        );
        assert!(next.renew);
    }
    // A list alone is no success: the watch after it may fail each time.
    machine.listed("5".to_owned());
    let next = machine.ended(&End::ErrorEvent { code: 410 }, false);
    assert!(matches!(next.wait, Wait::Backoff { failures: 4, .. }));
    machine.listed("6".to_owned());
    assert!(machine.heard("7"));
    let next = machine.ended(&End::Cut, false);
    assert!(matches!(next.wait, Wait::Backoff { failures: 1, .. }));
}

#[test]
fn a_watch_that_lived_long_and_ended_in_order_is_replaced_at_once() {
    assert_eq!(watching().ended(&End::Closed, true).wait, Wait::No);
    let next = watching().ended(&End::Closed, false);
    assert!(matches!(next.wait, Wait::Backoff { failures: 1, .. }));
}

#[test]
fn what_the_server_asks_for_is_passed_on() {
    let end = End::Status {
        code: 429,
        retry_after: Some(SECOND),
    };
    let next = watching().ended(&end, false);
    assert_eq!(
        next.wait,
        Wait::Backoff {
            failures: 1,
            away: false,
            asked: Some(SECOND)
        }
    );
}

#[test]
fn only_what_is_optional_may_be_unavailable() {
    for code in [403, 404] {
        let mut optional = Machine::new(true, true);
        let next = optional.ended(&status(code), false);
        assert!(next.unavailable);
        assert_eq!(next.wait, Wait::Unavailable { failures: 1 });
        let next = optional.ended(&status(code), false);
        assert_eq!(next.wait, Wait::Unavailable { failures: 2 });
        let mut required = Machine::new(false, true);
        let next = required.ended(&status(code), false);
        assert!(!next.unavailable);
        assert!(matches!(next.wait, Wait::Backoff { .. }));
    }
    assert!(watching().ended(&status(401), false).renew);
}

/// An API server with one resource: what there is, and how it came to be.
#[derive(Debug, Default)]
struct Server {
    version: u64,
    /// Version, object, and whether it was made or deleted.
    history: Vec<(u64, u8, bool)>,
    oldest: u64,
    streams: bool,
    /// Restored, and it takes until after the next request.
    restarting: bool,
    /// Restored at once, and nothing has changed since: that is all the time it
    /// has before it is asked again.
    fresh: bool,
}

impl Server {
    fn content(&self) -> std::collections::BTreeSet<u8> {
        let mut content = std::collections::BTreeSet::new();
        for (_, object, made) in &self.history {
            if *made {
                content.insert(*object);
            } else {
                content.remove(object);
            }
        }
        content
    }
}

#[derive(Clone, Debug)]
enum Step {
    Change(u8, bool),
    Compact,
    /// Goes back by so many versions, at once or away for a while.
    Restore(u64, bool),
    Request(Option<End>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = prop_oneof![
        Just(End::Closed),
        Just(End::Cut),
        Just(End::Silent),
        Just(End::Unreachable),
        Just(End::Nonsense),
        prop_oneof![
            Just(401),
            Just(410),
            Just(422),
            Just(429),
            Just(500),
            Just(503)
        ]
        .prop_map(status),
        prop_oneof![Just(410), Just(500)].prop_map(|code| End::ErrorEvent { code }),
    ];
    let step = prop_oneof![
        4 => (0..6u8, any::<bool>()).prop_map(|(object, made)| Step::Change(object, made)),
        1 => Just(Step::Compact),
        1 => (1..5u64, any::<bool>()).prop_map(|(by, at_once)| Step::Restore(by, at_once)),
        4 => prop::option::weighted(0.4, end).prop_map(Step::Request),
    ];
    prop::collection::vec(step, 1..60)
}

/// One who follows, as far as it matters.
#[derive(Debug)]
struct Ours {
    machine: Machine,
    content: std::collections::BTreeSet<u8>,
}

impl Ours {
    fn request(&mut self, server: &mut Server, trouble: Option<End>) {
        let trouble = if std::mem::take(&mut server.restarting) {
            Some(End::Unreachable)
        } else {
            trouble
        };
        if let Some(end) = trouble {
            self.machine.ended(&end, false);
            return;
        }
        server.fresh = false;
        let version = server.version.to_string();
        match self.machine.ask() {
            Ask::Stream if !server.streams => {
                self.machine.ended(&status(422), false);
            }
            Ask::Stream | Ask::List { .. } => {
                self.content = server.content();
                self.machine.listed(version);
            }
            Ask::Newest => {
                self.machine.newest(&version);
            }
            Ask::Watch { from } => {
                let from: u64 = from.parse().unwrap();
                if from < server.oldest {
                    self.machine.ended(&End::ErrorEvent { code: 410 }, false);
                    return;
                }
                // In the future: silence.
                for (at, object, made) in &server.history {
                    if *at <= from {
                        continue;
                    }
                    assert!(self.machine.heard(&at.to_string()));
                    if *made {
                        self.content.insert(*object);
                    } else {
                        self.content.remove(object);
                    }
                }
                self.machine.ended(&End::Closed, true);
            }
        }
    }
}

proptest! {
    /// Whatever happened, a server that is well again is followed rightly after
    /// a few requests: nothing is lost, nothing is kept for ever.
    #[test]
    fn the_state_comes_right(steps in steps(), streams in any::<bool>()) {
        let mut server = Server { version: 100, oldest: 100, streams, ..Server::default() };
        let machine = Machine::new(false, true);
        let mut ours = Ours { machine, content: Default::default() };
        for step in steps {
            match step {
                Step::Change(..) if server.fresh => {}
                Step::Change(object, made) => {
                    server.version += 1;
                    server.history.push((server.version, object, made));
                }
                // The content is a sum of the history, which is kept for that.
                Step::Compact => server.oldest = server.version,
                Step::Restore(by, at_once) => {
                    server.version -= by;
                    server.oldest = server.oldest.min(server.version);
                    let version = server.version;
                    server.history.retain(|(at, _, _)| *at <= version);
                    server.fresh = at_once;
                    server.restarting = !at_once;
                    // It broke the connections in any case.
                    if matches!(ours.machine.ask(), Ask::Watch { .. }) {
                        ours.machine.ended(&End::Cut, false);
                    }
                }
                Step::Request(trouble) => ours.request(&mut server, trouble),
            }
        }
        for _ in 0..6 {
            ours.request(&mut server, None);
        }
        prop_assert_eq!(ours.content, server.content());
    }
}
