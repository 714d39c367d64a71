//! Reading the configuration again while the proxy runs.
//!
//! What is in effect afterwards is the old configuration with those parts of the
//! new one that can change; the rest is named. No task of its own: it belongs to
//! whoever waits for SIGHUP.

use std::sync::{Arc, PoisonError, RwLock};

use serde_json::{Map, Value};
use tokio::sync::watch;
use tracing::{info, warn};

use super::exposure::Exposure;
use super::limits;
use super::logging::LogLevel;
use super::pods::PodGate;
use super::settings::dataplane_config;
use crate::config::{Config, FlowConfig, Settings};
use crate::dataplane::Dataplane;
use crate::ipvs::Table;
use crate::node_port::NodePorts;
use crate::service::Change;
use crate::service::index::Index;

/// Those who follow settings that can change.
#[derive(Debug)]
pub(super) struct Reloader {
    pub(super) table: Arc<Table>,
    pub(super) index: Arc<RwLock<Index>>,
    pub(super) dataplane: Arc<Dataplane>,
    pub(super) node_ports: Arc<NodePorts>,
    pub(super) exposure: Arc<Exposure>,
    pub(super) pods: Arc<PodGate>,
    pub(super) log: LogLevel,
}

impl Reloader {
    /// Reads the configuration again and applies what can be. One that is wrong is
    /// reported, and changes nothing.
    pub(super) fn reload(&self, settings: &Settings, current: &watch::Sender<Arc<Config>>) {
        let loaded = match settings.load() {
            Ok(loaded) => loaded,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                warn!(%error, cause, "the configuration is wrong: it stays as it was");
                return;
            }
        };
        loaded.tell_ignored();
        let (old, new) = (Arc::clone(&current.borrow()), loaded.config);
        let effective = self.effective(&old, &new);
        let applied = changed(&old.settings(), &effective.settings());
        let restart = changed(&effective.settings(), &new.settings());
        self.apply(&old, &effective);
        current.send_replace(Arc::new(effective));
        if applied.is_empty() && restart.is_empty() {
            info!("the configuration was read again: nothing has changed");
        }
        if !applied.is_empty() {
            info!(
                settings = applied.join(", "),
                "changed settings are in effect"
            );
        }
        if !restart.is_empty() {
            warn!(
                settings = restart.join(", "),
                "changed settings need a restart: they stay as they were"
            );
        }
    }

    /// The configuration that is in effect once `new` was read.
    fn effective(&self, old: &Config, new: &Config) -> Config {
        let mut flows = FlowConfig {
            ipvs_compat: old.flows.ipvs_compat,
            ..new.flows.clone()
        };
        if !self.pods.can(flows.pod_traffic) {
            flows.pod_traffic = old.flows.pod_traffic;
        }
        Config {
            flows,
            node_port_addresses: new.node_port_addresses.clone(),
            drain_timeout: new.drain_timeout,
            takeover_drain_timeout: new.takeover_drain_timeout,
            log_level: new.log_level.clone(),
            ..old.clone()
        }
    }

    fn apply(&self, old: &Config, new: &Config) {
        if new.log_level != old.log_level
            && let Err(error) = self.log.set(new.log_level.clone())
        {
            warn!(%error, "what is logged cannot be changed");
        }
        let (before, flows) = (&old.flows, &new.flows);
        if flows.max_flows != before.max_flows {
            limits::raise_open_files(flows.max_flows);
        }
        if flows.pod_traffic != before.pod_traffic {
            self.pods.set(flows.pod_traffic);
        }
        if flows.scheduler != before.scheduler {
            self.schedule(flows.scheduler);
        }
        if flows != before {
            let config = Arc::new(dataplane_config(new));
            self.dataplane.configure(&config);
            self.node_ports.configure(&config);
        }
        if new.node_port_addresses != old.node_port_addresses {
            self.node_ports.set_wanted(new.node_port_addresses.clone());
            self.exposure.addresses_changed();
        }
    }

    /// Gives virtual servers that ask for no scheduler this one.
    fn schedule(&self, scheduler: crate::ipvs::SchedulerKind) {
        self.table.set_scheduler(scheduler);
        // While the index is read nothing is newer than what it says.
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        for spec in index.virtual_servers() {
            if spec.scheduler.is_none() {
                self.table.apply(&Change::Upsert(spec.clone()));
            }
        }
    }
}

/// Names of the settings that differ, in their order.
fn changed(before: &Map<String, Value>, after: &Map<String, Value>) -> Vec<String> {
    let names = before.keys().chain(after.keys());
    let mut names: Vec<_> = names
        .filter(|name| before.get(*name) != after.get(*name))
        .cloned()
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}
