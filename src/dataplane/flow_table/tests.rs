use std::collections::HashMap as Map;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

/// One of the keys of client 10.1.65.5.
pub(in crate::dataplane) fn key(port: u16) -> FlowKey {
    FlowKey {
        client: (Ipv4Addr::new(10, 1, 65, 5), port).into(),
        virtual_server: (Ipv4Addr::new(10, 0, 0, 3), 443).into(),
        protocol: Protocol::Tcp,
    }
}

fn sent(number: u32) -> Sent {
    Sent {
        sequence: number,
        acknowledgement: !number,
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(u16),
    /// Remove the flow that was inserted so many insertions ago.
    Remove {
        back: usize,
        time_wait: bool,
    },
    EndTimeWait(u16),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..12_u16).prop_map(Step::Insert),
        4 => (0..20_usize, any::<bool>())
            .prop_map(|(back, time_wait)| Step::Remove { back, time_wait }),
        1 => (0..12_u16).prop_map(Step::EndTimeWait),
        3 => (0..6_000_u64).prop_map(Step::Pass),
    ]
}

/// What a key leads to, by the shortest of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leads {
    Flow(usize),
    TimeWait { until: Instant, sent: Sent },
}

/// The table in a few lines: every flow that ever was, and where keys lead.
struct Model {
    flows: Vec<(FlowId, u16, bool)>,
    keys: Map<u16, Leads>,
    now: Instant,
}

impl Model {
    fn alive(&self) -> usize {
        self.flows.iter().filter(|(.., alive)| *alive).count()
    }

    fn apply(&mut self, table: &mut FlowTable<usize>, step: Step) {
        match step {
            Step::Insert(port) => {
                let number = self.flows.len();
                let mut told = None;
                let id = table.insert(key(port), |id| {
                    told = Some(id);
                    number
                });
                assert_eq!(told, Some(id));
                self.flows.push((id, port, true));
                self.keys.insert(port, Leads::Flow(number));
            }
            Step::Remove { back, time_wait } => {
                let Some(number) = self.flows.len().checked_sub(back + 1) else {
                    return;
                };
                let (id, port, alive) = self.flows[number];
                let words = sent(number as u32);
                let wait = time_wait.then_some((self.now, words));
                let removed = table.remove(id, key(port), wait);
                assert_eq!(removed, alive.then_some(number));
                self.flows[number].2 = false;
                // A flow that the key no longer leads to changes nothing for it.
                if alive && self.keys.get(&port) == Some(&Leads::Flow(number)) {
                    self.keys.remove(&port);
                    if time_wait {
                        let until = self.now + TIME_WAIT;
                        self.keys
                            .insert(port, Leads::TimeWait { until, sent: words });
                    }
                }
            }
            Step::EndTimeWait(port) => {
                table.end_time_wait(&key(port));
                if let Some(Leads::TimeWait { .. }) = self.keys.get(&port) {
                    self.keys.remove(&port);
                }
            }
            Step::Pass(millis) => {
                self.now += Duration::from_millis(millis);
                table.expire_time_wait(self.now);
                let now = self.now;
                self.keys.retain(
                    |_, leads| !matches!(leads, Leads::TimeWait { until, .. } if *until <= now),
                );
            }
        }
    }

    fn compare(&self, table: &mut FlowTable<usize>) {
        for port in 0..12 {
            match (table.find(&key(port)), self.keys.get(&port)) {
                (None, None) => {}
                (Some(Found::Flow(id)), Some(Leads::Flow(number))) => {
                    assert_eq!(id, self.flows[*number].0);
                }
                (Some(Found::TimeWait(found)), Some(Leads::TimeWait { sent, .. })) => {
                    assert_eq!(found, *sent);
                }
                (found, leads) => panic!("port {port} leads to {found:?}, not {leads:?}"),
            }
        }
        for (number, (id, _, alive)) in self.flows.iter().enumerate() {
            let mut expected = number;
            assert_eq!(table.get_mut(*id), alive.then_some(&mut expected));
            assert_eq!(FlowId::from_token(id.to_token()), *id);
        }
        assert_eq!(table.iter_mut().count(), self.alive());
        if self
            .keys
            .values()
            .any(|leads| matches!(leads, Leads::TimeWait { .. }))
        {
            assert!(table.has_time_wait());
        }
    }
}

proptest! {


    #[test]
    fn as_the_model(steps in prop::collection::vec(step(), 0..80)) {
        let mut table = FlowTable::default();
        let mut model = Model { flows: Vec::new(), keys: Map::new(), now: Instant::now() };
        for step in steps {
            model.apply(&mut table, step);
            model.compare(&mut table);
        }
    }
}

#[test]
fn an_event_for_an_earlier_tenant_finds_nobody() {
    let mut table = FlowTable::default();
    let first = table.insert(key(1), |_| 1);
    table.remove(first, key(1), None);
    let second = table.insert(key(2), |_| 2);
    assert_eq!(second.index, first.index, "the slot is used again");
    assert_eq!(table.get_mut(first), None);
    assert_eq!(table.remove(first, key(1), None), None);
    assert_eq!(table.get_mut(second), Some(&mut 2));
}

#[test]
fn time_wait_is_bounded_and_the_oldest_goes() {
    let mut table = FlowTable::default();
    let now = Instant::now();
    let many = |index: u32| FlowKey {
        client: (Ipv4Addr::from(0x0a01_0000 + index), 1_000).into(),
        ..key(0)
    };
    for index in 0..MAX_TIME_WAIT as u32 + 10 {
        let id = table.insert(many(index), |_| ());
        table.remove(id, many(index), Some((now, sent(index))));
    }
    assert_eq!(table.time_wait.len(), MAX_TIME_WAIT);
    assert_eq!(table.keys.len(), MAX_TIME_WAIT);
    assert!(table.find(&many(9)).is_none());
    assert!(table.find(&many(10)).is_some());
    // Slots are used again: one flow at a time needs one.
    assert_eq!(table.slots.len(), 1);
    table.expire_time_wait(now + TIME_WAIT - Duration::from_millis(1));
    assert_eq!(table.keys.len(), MAX_TIME_WAIT);
    table.expire_time_wait(now + TIME_WAIT);
    assert_eq!(table.keys.len(), 0);
    assert!(!table.has_time_wait());
}

/// A port that is used again and again waits for its latest end only.
#[test]
fn a_later_end_of_the_same_key_waits_its_own_time() {
    let mut table = FlowTable::default();
    let start = Instant::now();
    for second in 0..3 {
        let id = table.insert(key(1), |_| ());
        let now = start + Duration::from_secs(second);
        table.remove(id, key(1), Some((now, sent(second as u32))));
    }
    table.expire_time_wait(start + TIME_WAIT + Duration::from_secs(1));
    assert!(matches!(table.find(&key(1)), Some(Found::TimeWait(found)) if found == sent(2)));
    table.expire_time_wait(start + TIME_WAIT + Duration::from_secs(2));
    assert!(table.find(&key(1)).is_none());
}
