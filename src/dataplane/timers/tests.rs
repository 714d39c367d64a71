use std::time::Duration;

use super::*;
use crate::dataplane::flow_table::FlowTable;

#[test]
fn flows_come_in_the_order_of_their_times() {
    let mut table = FlowTable::default();
    let flows: Vec<FlowId> = (0..50)
        .map(|port| table.insert(super::super::flow_table::tests::key(port), |_| ()))
        .collect();
    let start = Instant::now();
    let at = |index: usize| start + Duration::from_millis((index as u64 * 37) % 50);
    let mut timers = Timers::default();
    assert_eq!(timers.next(), None);
    assert_eq!(timers.due(start), None);
    for (index, flow) in flows.iter().enumerate() {
        timers.arm(at(index), *flow);
    }
    assert_eq!(timers.next(), Some(start));
    // Not a moment too early.
    let mut expected: Vec<(Instant, FlowId)> = flows
        .iter()
        .enumerate()
        .map(|(index, flow)| (at(index), *flow))
        .collect();
    expected.sort_unstable();
    let mut seen = Vec::new();
    for millis in 0..50 {
        let now = start + Duration::from_millis(millis);
        assert_eq!(timers.next(), Some(now));
        while let Some((at, flow)) = timers.due(now) {
            assert_eq!(at, now);
            seen.push((at, flow));
        }
        assert_eq!(timers.due(now), None);
    }
    assert_eq!(seen, expected);
    assert_eq!(timers.next(), None);
}

/// A flow that was armed twice comes twice; its caller knows which one counts.
#[test]
fn every_time_that_was_armed_comes() {
    let mut table = FlowTable::default();
    let flow = table.insert(super::super::flow_table::tests::key(1), |_| ());
    let start = Instant::now();
    let mut timers = Timers::default();
    timers.arm(start + Duration::from_secs(2), flow);
    timers.arm(start + Duration::from_secs(1), flow);
    let now = start + Duration::from_secs(3);
    assert_eq!(
        timers.due(now),
        Some((start + Duration::from_secs(1), flow))
    );
    assert_eq!(
        timers.due(now),
        Some((start + Duration::from_secs(2), flow))
    );
    assert_eq!(timers.due(now), None);
}
