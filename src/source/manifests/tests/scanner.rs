//! One look at a time, by hand: what is said, and how often.

use std::fs::FileTimes;
use std::time::SystemTime;

use super::super::report::Report;
use super::super::scan::{Clock, Look, Scanner};
use super::super::store::Name;
use super::super::told::Tidings;
use super::*;

/// A scanner with a clock that moves only when told to.
struct Looking {
    scanner: Scanner,
    clock: Clock,
}

impl Looking {
    fn at(path: &Path) -> Self {
        Self {
            scanner: Scanner::new(path.to_owned()),
            clock: Clock::read(),
        }
    }

    fn look(&mut self) -> Look {
        self.scanner.look(self.clock)
    }

    fn advance(&mut self, by: Duration) {
        self.clock.now += by;
        self.clock.wall += by;
    }
}

/// Looks until everything has settled; reports and events of all looks.
fn looks(scanner: &mut Looking) -> (Vec<Event>, Vec<Report>) {
    let (mut events, mut reports) = (Vec::new(), Vec::new());
    loop {
        let look = scanner.look();
        reports.extend(look.reports);
        events.extend(look.batch.into_iter().flat_map(|batch| batch.events));
        if !look.unsettled {
            return (events, reports);
        }
        scanner.advance(SETTLE);
    }
}

/// Events as the object with its file and document, or what is deleted.
fn named(events: &[Event]) -> Vec<String> {
    let name = |event: &Event| match event {
        Event::Apply { object, origin } => {
            let origin = origin.as_ref().unwrap();
            let file = origin.file.file_name().unwrap().display();
            format!("{} {file} {}", object.key(), origin.document)
        }
        Event::Delete(key) => format!("{key} deleted"),
    };
    events.iter().map(name).collect()
}

fn parse_errors(reports: &[Report]) -> Vec<(Option<&str>, Option<&str>, bool)> {
    let error = |report: &'_ Report| match report {
        Report::Parse { .. } => true,
        Report::PathUnreadable { .. }
        | Report::FileUnreadable { .. }
        | Report::Duplicate { .. }
        | Report::IgnoredKind { .. } => false,
    };
    let mut found = Vec::new();
    for report in reports {
        assert!(error(report), "{report:?}");
        if let Report::Parse { error, last_good } = report {
            found.push((error.object.as_deref(), error.field.as_deref(), *last_good));
        }
    }
    found
}

fn scanner(dir: &TempDir) -> Looking {
    Looking::at(dir.path())
}

#[test]
fn the_last_good_content_stays_and_is_reported_once() {
    let dir = TempDir::new().unwrap();
    let mut scanner = scanner(&dir);
    let good = format!(
        "{}---\n{}",
        service("a", "10.0.0.1"),
        service("b", "10.0.0.2")
    );
    write(dir.path(), "f.yaml", &good);
    write(dir.path(), "g.yaml", &service("g", "10.0.0.3"));
    assert_eq!(looks(&mut scanner).0.len(), 3);
    // Broken in one document: the whole file stays, the other file is followed.
    let bad = format!("{}---\n{}", service("a", "10.0.0.9"), service("b", "[]"));
    write(dir.path(), "f.yaml", &bad);
    write(dir.path(), "g.yaml", &service("g", "10.0.0.4"));
    let (events, reports) = looks(&mut scanner);
    assert_eq!(named(&events), ["Service default/g g.yaml 1"]);
    let expected = (Some("Service default/b"), Some("spec.clusterIP"), true);
    assert_eq!(parse_errors(&reports), [expected]);
    // Looked at again, touched, written again with the same: not told again.
    assert_eq!(looks(&mut scanner), (vec![], vec![]));
    replace(dir.path(), "f.yaml", &bad);
    assert_eq!(looks(&mut scanner), (vec![], vec![]));
    // Other content that is as bad is told.
    write(
        dir.path(),
        "f.yaml",
        &format!("{bad}---\n{}", service("c", "10.0.0.8")),
    );
    let (events, reports) = looks(&mut scanner);
    assert_eq!((named(&events).len(), parse_errors(&reports).len()), (0, 1));
    // Mended.
    write(dir.path(), "f.yaml", &good.replace("10.0.0.1", "10.0.0.7"));
    let (events, reports) = looks(&mut scanner);
    assert_eq!(named(&events), ["Service default/a f.yaml 1"]);
    assert_eq!(reports, []);
}

#[test]
fn of_a_file_that_never_was_good_what_parses_is_used() {
    let dir = TempDir::new().unwrap();
    let mut scanner = scanner(&dir);
    let text = format!("{}---\n{}", service("a", "10.0.0.1"), service("b", "[]"));
    write(dir.path(), "f.yaml", &text);
    let (events, reports) = looks(&mut scanner);
    assert_eq!(named(&events), ["Service default/a f.yaml 1"]);
    let expected = (Some("Service default/b"), Some("spec.clusterIP"), false);
    assert_eq!(parse_errors(&reports), [expected]);
    write(dir.path(), "f.yaml", "a: [");
    let (events, reports) = looks(&mut scanner);
    assert_eq!(named(&events), ["Service default/a deleted"]);
    assert_eq!(parse_errors(&reports), [(None, None, false)]);
}

#[test]
fn the_first_file_wins_and_the_other_takes_over() {
    let dir = TempDir::new().unwrap();
    let mut scanner = scanner(&dir);
    write(dir.path(), "b.yaml", &service("web", "10.0.0.2"));
    assert_eq!(looks(&mut scanner).0.len(), 1);
    write(dir.path(), "a.yaml", &service("web", "10.0.0.1"));
    let (events, reports) = looks(&mut scanner);
    assert_eq!(named(&events), ["Service default/web a.yaml 1"]);
    let [
        Report::Duplicate {
            object,
            used,
            ignored,
        },
    ] = reports.as_slice()
    else {
        panic!("one duplicate: {reports:?}");
    };
    assert_eq!(object.to_string(), "Service default/web");
    assert!(used.file.ends_with("a.yaml") && ignored.file.ends_with("b.yaml"));
    // A change of the one that lost changes nothing and is not told again.
    write(dir.path(), "b.yaml", &service("web", "10.0.0.3"));
    assert_eq!(looks(&mut scanner), (vec![], vec![]));
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    let (events, reports) = looks(&mut scanner);
    assert_eq!(named(&events), ["Service default/web b.yaml 1"]);
    assert_eq!(reports, []);
    // Twice in one file: the first.
    let twice = format!(
        "{}---\n{}",
        service("web", "10.0.0.5"),
        service("web", "10.0.0.6")
    );
    write(dir.path(), "b.yaml", &twice);
    let (events, reports) = looks(&mut scanner);
    assert_eq!(named(&events), ["Service default/web b.yaml 1"]);
    assert!(matches!(reports.as_slice(), [Report::Duplicate { .. }]));
}

#[test]
fn a_kind_that_is_not_ours_is_named_once() {
    let dir = TempDir::new().unwrap();
    let mut scanner = scanner(&dir);
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";
    write(dir.path(), "a.yaml", &format!("{pod}---\n{pod}"));
    write(dir.path(), "b.yaml", pod);
    let (events, reports) = looks(&mut scanner);
    assert_eq!(events, []);
    assert!(matches!(reports.as_slice(), [Report::IgnoredKind { kind, .. }] if kind == "v1 Pod"));
}

#[test]
fn a_file_written_bit_by_bit_is_read_when_it_is_whole() {
    let dir = TempDir::new().unwrap();
    let mut scanner = scanner(&dir);
    looks(&mut scanner);
    let text = service("a", "10.0.0.1");
    for end in (10..text.len()).step_by(40).chain([text.len()]) {
        write(dir.path(), "a.yaml", &text[..end]);
        let look = scanner.look();
        assert!(look.batch.is_none() && look.reports.is_empty() && look.unsettled);
    }
    let (events, reports) = looks(&mut scanner);
    assert_eq!(named(&events), ["Service default/a a.yaml 1"]);
    assert_eq!(reports, []);
}

#[test]
fn a_file_that_is_moved_away_and_back_is_not_missed() {
    let dir = TempDir::new().unwrap();
    let mut scanner = scanner(&dir);
    write(dir.path(), "a.yaml", &service("a", "10.0.0.1"));
    assert_eq!(looks(&mut scanner).0.len(), 1);
    fs::rename(dir.path().join("a.yaml"), dir.path().join("a.yaml~")).unwrap();
    let look = scanner.look();
    assert!(look.batch.is_none() && look.unsettled);
    write(dir.path(), "a.yaml", &service("a", "10.0.0.2"));
    assert_eq!(
        named(&looks(&mut scanner).0),
        ["Service default/a a.yaml 1"]
    );
}

#[test]
fn an_old_file_is_read_at_the_first_look() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "a.yaml", &service("a", "10.0.0.1"));
    let file = fs::File::options()
        .append(true)
        .open(dir.path().join("a.yaml"))
        .unwrap();
    let old = SystemTime::now() - Duration::from_secs(60);
    file.set_times(FileTimes::new().set_modified(old)).unwrap();
    let look = scanner(&dir).look();
    assert_eq!(look.batch.unwrap().events.len(), 1);
    assert!(!look.unsettled);
}

/// Same size, same modification time, same inode.
#[test]
fn a_writer_that_hides_its_traces_is_noticed() {
    let dir = TempDir::new().unwrap();
    let mut scanner = scanner(&dir);
    let path = dir.path().join("a.yaml");
    let old = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(60));
    let put = |ip| {
        write(dir.path(), "a.yaml", &service("a", ip));
        let file = fs::File::options().append(true).open(&path).unwrap();
        file.set_times(old).unwrap();
    };
    put("10.0.0.1");
    assert_eq!(looks(&mut scanner).0.len(), 1);
    // The change time has the kernel's tick as grain: write until it moves.
    let changed = || std::os::unix::fs::MetadataExt::ctime_nsec(&fs::metadata(&path).unwrap());
    let before = changed();
    while changed() == before {
        put("10.0.0.2");
    }
    assert_eq!(looks(&mut scanner).0.len(), 1);
}

#[test]
fn an_unreadable_path_is_said_once_and_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("manifests");
    let mut scanner = Looking::at(&path);
    let (events, reports) = looks(&mut scanner);
    assert_eq!(events, []);
    assert!(matches!(
        reports.as_slice(),
        [Report::PathUnreadable { .. }]
    ));
    assert!(scanner.look().batch.is_none());
    fs::create_dir(&path).unwrap();
    write(&path, "a.yaml", &service("a", "10.0.0.1"));
    assert_eq!(looks(&mut scanner).0.len(), 1);
    fs::remove_dir_all(&path).unwrap();
    let (events, reports) = looks(&mut scanner);
    assert_eq!(events, []);
    assert!(matches!(
        reports.as_slice(),
        [Report::PathUnreadable { .. }]
    ));
    assert_eq!(looks(&mut scanner), (vec![], vec![]));
}

#[test]
fn links_are_followed_and_what_is_no_file_is_left() {
    let dir = TempDir::new().unwrap();
    let outside = TempDir::new().unwrap();
    write(outside.path(), "x", &service("a", "10.0.0.1"));
    symlink(outside.path().join("x"), dir.path().join("a.yaml")).unwrap();
    symlink("nowhere", dir.path().join("b.yaml")).unwrap();
    fs::create_dir(dir.path().join("c.yaml")).unwrap();
    let mut scanner = scanner(&dir);
    let (events, reports) = looks(&mut scanner);
    assert_eq!(named(&events), ["Service default/a a.yaml 1"]);
    assert_eq!(reports, []);
    // A change behind the link, which no watch sees.
    replace(outside.path(), "x", &service("a", "10.0.0.2"));
    assert_eq!(looks(&mut scanner).0.len(), 1);
}

#[test]
fn a_file_that_never_rests_is_read_but_not_blamed() {
    let dir = TempDir::new().unwrap();
    let mut scanner = scanner(&dir);
    looks(&mut scanner);
    let mut events = Vec::new();
    for i in 0..12 {
        let text = match i {
            0..8 => service("a", &format!("10.0.0.{i}")),
            _ => format!("a: [{}", " ".repeat(i)),
        };
        // Another inode each time: the kernel's tick is too coarse to tell.
        replace(dir.path(), "a.yaml", &text);
        let look = scanner.look();
        assert!(look.unsettled && look.reports.is_empty());
        events.extend(look.batch.into_iter().flat_map(|batch| batch.events));
        // Only ours: by its own account each file is new.
        scanner.clock.now += SETTLE - Duration::from_millis(1);
    }
    assert!(events.len() >= 2, "{events:?}");
    // At rest at last, and broken.
    let (events, reports) = looks(&mut scanner);
    assert_eq!((events.len(), parse_errors(&reports).len()), (0, 1));
}

/// What inotify would tell of files in a directory.
fn told(dir: &TempDir, files: &[(&str, bool)]) -> Tidings {
    let name = |file: &str| Name(dir.path().join(file).into());
    let files = files.iter().map(|(file, finished)| (name(file), *finished));
    Tidings {
        files: files.collect(),
        all: false,
    }
}

/// Looks at what is told and at nothing else.
fn hear(scanner: &mut Looking, told: &Tidings) -> Look {
    scanner.scanner.look_at_some(scanner.clock, told)
}

fn events(look: Look) -> Vec<String> {
    assert_eq!(look.reports, []);
    let events = look.batch.into_iter().flat_map(|batch| batch.events);
    named(&events.collect::<Vec<_>>())
}

#[test]
fn a_finished_file_is_read_at_once_and_no_other() {
    let dir = TempDir::new().unwrap();
    let mut scanner = scanner(&dir);
    write(dir.path(), "a.yaml", &service("a", "10.0.0.1"));
    write(dir.path(), "b.yaml", &service("b", "10.0.0.2"));
    assert_eq!(looks(&mut scanner).0.len(), 2);
    write(dir.path(), "a.yaml", &service("a", "10.0.0.3"));
    write(dir.path(), "b.yaml", &service("b", "10.0.0.4"));
    write(dir.path(), "c.yaml", &service("c", "10.0.0.5"));
    let look = hear(
        &mut scanner,
        &told(&dir, &[("a.yaml", true), ("b.yaml", false)]),
    );
    assert!(look.unsettled);
    assert_eq!(events(look), ["Service default/a a.yaml 1"]);
    // A new one.
    let look = hear(&mut scanner, &told(&dir, &[("c.yaml", true)]));
    assert_eq!(events(look), ["Service default/c c.yaml 1"]);
    // The one that was being written, once it is left alone.
    assert!(scanner.scanner.settles_in(scanner.clock) <= SETTLE);
    scanner.advance(SETTLE);
    let look = hear(&mut scanner, &Tidings::default());
    assert!(!look.unsettled);
    assert_eq!(events(look), ["Service default/b b.yaml 1"]);
    assert_eq!(looks(&mut scanner), (vec![], vec![]));
}

/// `> file`, then `>> file`: a write was finished each time, the file was not.
#[test]
fn what_goes_from_a_finished_file_has_time() {
    let dir = TempDir::new().unwrap();
    let mut scanner = scanner(&dir);
    let (a, b) = (service("a", "10.0.0.1"), service("b", "10.0.0.2"));
    write(dir.path(), "f.yaml", &format!("{a}---\n{b}"));
    assert_eq!(looks(&mut scanner).0.len(), 2);
    let finished = told(&dir, &[("f.yaml", true)]);
    let b = service("b", "10.0.0.3");
    let whole = format!("{a}---\n{b}");
    for text in ["", &a, &whole[..whole.len() - 10]] {
        write(dir.path(), "f.yaml", text);
        let look = hear(&mut scanner, &finished);
        assert!(look.unsettled);
        assert_eq!(events(look), [""; 0]);
    }
    write(dir.path(), "f.yaml", &whole);
    assert_eq!(
        events(hear(&mut scanner, &finished)),
        ["Service default/b f.yaml 2"]
    );
    // Left so, it goes.
    write(dir.path(), "f.yaml", &a);
    assert_eq!(events(hear(&mut scanner, &finished)), [""; 0]);
    scanner.advance(SETTLE);
    let look = hear(&mut scanner, &Tidings::default());
    assert_eq!(events(look), ["Service default/b deleted"]);
}

#[test]
fn a_finished_file_that_does_not_parse_is_told_when_it_has_settled() {
    let dir = TempDir::new().unwrap();
    let mut scanner = scanner(&dir);
    write(dir.path(), "f.yaml", &service("a", "10.0.0.1"));
    assert_eq!(looks(&mut scanner).0.len(), 1);
    write(dir.path(), "f.yaml", "a: [");
    let finished = told(&dir, &[("f.yaml", true)]);
    let look = hear(&mut scanner, &finished);
    assert!(look.reports.is_empty() && look.batch.is_none() && look.unsettled);
    scanner.advance(SETTLE);
    let look = hear(&mut scanner, &Tidings::default());
    assert_eq!(parse_errors(&look.reports), [(None, None, true)]);
    assert!(look.batch.is_none());
}

/// Two writes within a tick of the kernel's clock leave the same size and times.
#[test]
fn a_file_is_read_again_when_it_is_told_though_it_looks_the_same() {
    let dir = TempDir::new().unwrap();
    let mut scanner = scanner(&dir);
    looks(&mut scanner);
    let finished = told(&dir, &[("a.yaml", true)]);
    for round in 0..50 {
        write(
            dir.path(),
            "a.yaml",
            &service("a", &format!("10.0.0.{}", 10 + round)),
        );
        let look = hear(&mut scanner, &finished);
        assert_eq!(events(look), ["Service default/a a.yaml 1"]);
    }
}

#[test]
fn what_is_told_does_not_wait_for_a_look_at_everything() {
    let dir = TempDir::new().unwrap();
    let mut scanner = scanner(&dir);
    for file in 0..10 {
        let (name, ip) = (format!("s{file}"), format!("10.0.0.{file}"));
        write(dir.path(), &format!("{file}.yaml"), &service(&name, &ip));
    }
    assert_eq!(looks(&mut scanner).0.len(), 10);
    for file in 0..10 {
        let (name, ip) = (format!("s{file}"), format!("10.0.1.{file}"));
        replace(dir.path(), &format!("{file}.yaml"), &service(&name, &ip));
    }
    fs::remove_file(dir.path().join("9.yaml")).unwrap();
    scanner.advance(SETTLE);
    let portion =
        |scanner: &mut Looking, told: &Tidings| scanner.scanner.look_at_all(scanner.clock, told, 4);
    let look = portion(&mut scanner, &Tidings::default());
    assert!(look.more && look.batch.is_none());
    let look = portion(&mut scanner, &told(&dir, &[("8.yaml", true)]));
    assert!(look.more);
    // With it what was found before; the last portion brings the rest.
    assert_eq!(events(look).len(), 9);
    let look = portion(&mut scanner, &Tidings::default());
    assert!(!look.more && look.again);
    assert_eq!(events(look), [""; 0]);
    scanner.advance(SETTLE);
    assert_eq!(
        named(&looks(&mut scanner).0),
        ["Service default/s9 deleted"]
    );
}
