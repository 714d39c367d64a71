use super::*;

const TIMEOUT: Duration = Duration::from_secs(10_800);

fn server(host: u8) -> Arc<RealServer> {
    Arc::new(RealServer::new(([10, 1, 65, host], 443).into(), 1))
}

fn client(n: usize) -> IpAddr {
    IpAddr::from(u32::try_from(n).unwrap().to_be_bytes())
}

fn found(table: &mut Persistence, n: usize, now: Instant) -> Option<Arc<RealServer>> {
    table.lookup(client(n), now).map(Arc::clone)
}

#[track_caller]
fn assert_found(table: &mut Persistence, n: usize, now: Instant, expected: &Arc<RealServer>) {
    let found = found(table, n, now).expect("the entry is gone");
    assert_eq!(found.address, expected.address);
}

/// The two indices agree.
fn assert_whole(table: &Persistence) {
    let mut deadlines: Vec<_> = table
        .entries
        .iter()
        .map(|(client, entry)| (entry.deadline, *client))
        .collect();
    deadlines.sort_unstable();
    assert!(deadlines.iter().eq(&table.by_deadline));
}

#[test]
fn an_entry_lives_for_the_timeout_after_the_last_connection() {
    let start = Instant::now();
    let (mut table, a) = (Persistence::new(TIMEOUT), server(1));
    assert!(found(&mut table, 1, start).is_none());
    drop(table.confirm(client(1), &a, start));
    let second = start + TIMEOUT - Duration::from_secs(1);
    drop(table.confirm(client(1), &a, second));
    assert_found(
        &mut table,
        1,
        second + TIMEOUT - Duration::from_nanos(1),
        &a,
    );
    assert!(found(&mut table, 1, second + TIMEOUT).is_none());
    assert_whole(&table);
}

#[test]
fn looking_it_up_does_not_refresh_it() {
    let start = Instant::now();
    let (mut table, a) = (Persistence::new(TIMEOUT), server(1));
    drop(table.confirm(client(1), &a, start));
    assert_found(&mut table, 1, start + TIMEOUT / 2, &a);
    assert!(found(&mut table, 1, start + TIMEOUT).is_none());
}

#[test]
fn an_entry_outlives_its_timeout_while_a_connection_is_open() {
    let start = Instant::now();
    let (mut table, a) = (Persistence::new(TIMEOUT), server(1));
    let control = table.confirm(client(1), &a, start);
    let due = start + TIMEOUT;
    assert_found(&mut table, 1, due, &a);
    let later = due + 3 * TIMEOUT;
    assert_found(&mut table, 1, later, &a);
    // The last recheck was at `later`; the entry ends with the next one.
    drop(control);
    assert_found(&mut table, 1, later + RECHECK - Duration::from_nanos(1), &a);
    assert!(found(&mut table, 1, later + RECHECK).is_none());
    assert_whole(&table);
}

#[test]
fn a_choice_that_has_not_succeeded_is_kept_for_a_minute() {
    let start = Instant::now();
    let (mut table, a) = (Persistence::new(TIMEOUT), server(1));
    table.reserve(client(1), &a, start);
    assert_found(
        &mut table,
        1,
        start + TENTATIVE - Duration::from_nanos(1),
        &a,
    );
    assert!(found(&mut table, 1, start + TENTATIVE).is_none());
}

#[test]
fn a_connection_elsewhere_moves_the_entry() {
    let start = Instant::now();
    let (mut table, a, b) = (Persistence::new(TIMEOUT), server(1), server(2));
    let old = table.confirm(client(1), &a, start);
    drop(table.confirm(client(1), &b, start));
    assert_found(&mut table, 1, start, &b);
    // The connection that is still open to the first no longer holds the entry.
    assert!(found(&mut table, 1, start + TIMEOUT).is_none());
    drop(old);
    assert_whole(&table);
}

#[test]
fn an_entry_goes_with_its_real_server() {
    let start = Instant::now();
    let (mut table, a, b) = (Persistence::new(TIMEOUT), server(1), server(2));
    let _open = table.confirm(client(1), &a, start);
    drop(table.confirm(client(2), &b, start));
    table.retain(|server| server.address != a.address);
    assert!(found(&mut table, 1, start).is_none());
    assert_found(&mut table, 2, start, &b);
    assert_whole(&table);
}

#[test]
fn a_new_timeout_counts_from_the_next_connection() {
    let start = Instant::now();
    let (mut table, a) = (Persistence::new(TIMEOUT), server(1));
    drop(table.confirm(client(1), &a, start));
    table.set_timeout(TIMEOUT / 10);
    assert_found(&mut table, 1, start + TIMEOUT / 2, &a);
    drop(table.confirm(client(1), &a, start + TIMEOUT / 2));
    assert!(found(&mut table, 1, start + TIMEOUT / 2 + TIMEOUT / 10).is_none());
}

#[test]
fn a_full_table_gives_up_what_would_expire_first() {
    let start = Instant::now();
    let (mut table, a) = (Persistence::new(TIMEOUT), server(1));
    let at = |n: usize| start + Duration::from_millis(u64::try_from(n).unwrap());
    for n in 0..MAX_ENTRIES {
        drop(table.confirm(client(n), &a, at(n)));
    }
    // Client 0 comes again, so client 1 is now the one that was away longest.
    drop(table.confirm(client(0), &a, at(MAX_ENTRIES)));
    assert_eq!(table.entries.len(), MAX_ENTRIES);
    drop(table.confirm(client(MAX_ENTRIES), &a, at(MAX_ENTRIES)));
    assert_eq!(table.entries.len(), MAX_ENTRIES);
    assert!(found(&mut table, 1, at(MAX_ENTRIES)).is_none());
    assert_found(&mut table, 0, at(MAX_ENTRIES), &a);
    assert_found(&mut table, 2, at(MAX_ENTRIES), &a);
    assert_whole(&table);
}

#[test]
fn dead_entries_go_faster_than_new_ones_come() {
    let start = Instant::now();
    let (mut table, a) = (Persistence::new(TIMEOUT), server(1));
    for n in 0..1000 {
        drop(table.confirm(client(n), &a, start));
    }
    let later = start + TIMEOUT;
    for n in 1000..1500 {
        drop(table.confirm(client(n), &a, later));
    }
    assert_eq!(table.entries.len(), 500);
    assert_whole(&table);
}
