use std::sync::mpsc::sync_channel;

use mio::{Token, Waker};

use super::*;

const LONG: Duration = Duration::from_millis(20);

fn poll() -> (Poll, Events) {
    (Poll::new().unwrap(), Events::with_capacity(8))
}

/// One that has seen short waits only and knows nobody who wants the CPU.
fn eager() -> BusyPoll {
    BusyPoll {
        short: u8::MAX,
        contention: Some(free()),
    }
}

fn free() -> Contention {
    Contention {
        // Far from the next look.
        looked: Instant::now() + Duration::from_secs(3600),
        ..Contention::open().unwrap()
    }
}

#[test]
fn sleeps_until_waits_are_short() {
    let (mut poll, mut events) = poll();
    let mut waiting = BusyPoll {
        short: 0,
        contention: Some(free()),
    };
    let mut pays = Vec::new();
    for _ in 0..7 {
        pays.push(waiting.pays(Instant::now()));
        let nearly_nothing = Some(Duration::from_nanos(1));
        waiting
            .wait(&mut poll, &mut events, nearly_nothing, LONG)
            .unwrap();
    }
    assert_eq!(pays, [false, false, false, false, false, false, true]);
}

#[test]
fn three_long_waits_end_it() {
    let (mut poll, mut events) = poll();
    let mut waiting = eager();
    let window = Duration::from_micros(10);
    for _ in 0..3 {
        assert!(waiting.pays(Instant::now()));
        waiting
            .wait(&mut poll, &mut events, Some(LONG), window)
            .unwrap();
        assert!(events.is_empty());
    }
    assert!(!waiting.pays(Instant::now()));
}

#[test]
fn an_event_ends_the_look() {
    let (mut poll, mut events) = poll();
    let waker = Waker::new(poll.registry(), Token(7)).unwrap();
    let (go, gone) = sync_channel(0);
    let other = thread::spawn(move || {
        gone.recv().unwrap();
        waker.wake().unwrap();
        waker
    });
    go.send(()).unwrap();
    let mut waiting = eager();
    let forever = Duration::from_secs(3600);
    waiting.wait(&mut poll, &mut events, None, forever).unwrap();
    assert_eq!(events.iter().next().unwrap().token(), Token(7));
    assert!(waiting.pays(Instant::now()));
    drop(other.join());
}

#[test]
fn the_timeout_holds() {
    let (mut poll, mut events) = poll();
    for mut waiting in [eager(), BusyPoll::new()] {
        for window in [Duration::ZERO, Duration::from_millis(1), LONG * 1000] {
            let from = Instant::now();
            waiting
                .wait(&mut poll, &mut events, Some(LONG), window)
                .unwrap();
            assert!(from.elapsed() >= LONG, "{window:?}: {:?}", from.elapsed());
            assert!(from.elapsed() < LONG * 100, "{window:?}");
        }
    }
}

#[test]
fn one_cpu_is_never_spent() {
    let mut waiting = BusyPoll {
        short: u8::MAX,
        contention: None,
    };
    assert!(!waiting.pays(Instant::now()));
}

/// The file is the calling thread's: what it waited never shrinks, and it is short of
/// the time that has passed.
#[test]
fn who_wants_the_cpu() {
    let mut contention = Contention::open().unwrap();
    let from = contention.looked;
    assert!(!contention.is_felt(from), "no look was due");

    // Waited for all of the time.
    contention.waited = Duration::ZERO;
    contention.looked = from - LOOK;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "12345 9000000 17\n").unwrap();
    contention.file = File::open(file.path()).unwrap();
    let mut now = from;
    assert!(contention.is_felt(now));
    // Not at all since: it counts as wanted for some looks more.
    for _ in 1..CALM_LOOKS {
        now += LOOK;
        assert!(contention.is_felt(now));
    }
    now += LOOK;
    assert!(!contention.is_felt(now));
}

#[test]
fn a_strange_file_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(waited(file.as_file()).is_err());
    std::fs::write(file.path(), "12345 many\n").unwrap();
    assert!(waited(file.as_file()).is_err());
}
