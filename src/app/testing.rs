//! A data plane without a device, for tests.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::settings::{dataplane_config, node_port_config};
use crate::config::{Config, testing};
use crate::dataplane::Dataplane;
use crate::ipvs::{SchedulerKind, Table};
use crate::node_port::{NodePorts, RawSockets};

pub(super) fn config(words: &[&str]) -> Config {
    let mut config = testing::config(words);
    config.tun.workers = NonZeroUsize::MIN;
    config
}

pub(super) fn dataplane() -> Arc<Dataplane> {
    let table = Arc::new(Table::new(SchedulerKind::Rr));
    let config = dataplane_config(&config(&[]));
    Arc::new(Dataplane::start(config, table, Vec::new()).unwrap())
}

pub(super) fn node_ports(dataplane: &Dataplane) -> Arc<NodePorts> {
    let config = node_port_config(&config(&[]));
    Arc::new(NodePorts::start(config, RawSockets::open(), dataplane).unwrap())
}
