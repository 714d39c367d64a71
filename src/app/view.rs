//! What those who look in are shown of table and data plane.

use std::sync::Arc;

use tokio::sync::watch;

use super::checks::Checker;
use super::explain::Explainer;
use super::logging::LogLevel;
use super::observe::Observer;
use crate::admin::api::{self, Detail, FlowFilter};
use crate::admin::history::ServerRates;
use crate::admin::metrics::Measurements;
use crate::admin::socket::View;
use crate::config::{Config, LogFilter};
use crate::dataplane::{Counters, FlowView};
use crate::ipvs::{RealServerView, VirtualServerView};
use crate::service::Protocol;

/// A read-only view of a running proxy.
#[derive(Debug)]
pub(super) struct ProxyView {
    pub(super) observer: Arc<Observer>,
    pub(super) explainer: Explainer,
    pub(super) checker: Checker,
    pub(super) config: watch::Receiver<Arc<Config>>,
    pub(super) log: LogLevel,
}

impl View for ProxyView {
    fn services(&self, detail: Detail) -> Vec<api::VirtualServer> {
        let recorder = &self.observer.recorder;
        let snapshot = self.observer.table.snapshot();
        let told = snapshot.iter().map(|view| {
            let rates = recorder.server(&view.address, detail.history);
            virtual_server(view, rates)
        });
        told.collect()
    }

    fn standing(&self) -> Option<api::Standing> {
        let standing = self.observer.participation.as_ref()?.standing()?;
        Some(api::Standing {
            active: standing.active,
            reason: standing.reason.to_string(),
            since_seconds: standing.since.elapsed().as_secs(),
            changes: standing.changes,
        })
    }

    async fn flows(&self, filter: &FlowFilter) -> api::Flows {
        let mut flows = Vec::new();
        if let Some(dataplane) = self.observer.dataplane.upgrade() {
            flows = dataplane.flows().await;
        }
        if let Some(node_ports) = self.observer.node_ports.upgrade() {
            flows.extend(node_ports.flows().await);
        }
        let matching = filter.apply(&mut flows);
        let flows = flows.iter().map(flow).collect();
        api::Flows { flows, matching }
    }

    async fn check(&self) -> api::Checks {
        self.checker.checks().await
    }

    fn counters(&self) -> api::AllCounters {
        let tun = self
            .observer
            .dataplane
            .upgrade()
            .map(|d| counters(&d.counters()));
        let node_ports = self
            .observer
            .node_ports
            .upgrade()
            .map(|n| counters(&n.counters()));
        api::AllCounters {
            tun: tun.unwrap_or_default(),
            node_ports: node_ports.unwrap_or_default(),
        }
    }

    fn explain(&self, question: &api::Question) -> api::Explanation {
        self.explainer.explain(question)
    }

    fn status(&self, detail: Detail) -> api::Status {
        self.observer.status(detail)
    }

    fn measurements(&self) -> Measurements {
        self.observer.measurements()
    }

    fn configz(&self) -> serde_json::Value {
        self.config.borrow().document()
    }

    fn log_level(&self) -> String {
        self.log.current().as_str().to_owned()
    }

    fn set_log_level(&self, directives: &str) -> Result<(), String> {
        let filter: LogFilter = directives.parse()?;
        tracing::info!(directives = filter.as_str(), "what is logged changes");
        self.log.set(filter).map_err(|error| error.to_string())
    }
}

fn virtual_server(view: &VirtualServerView, rates: ServerRates) -> api::VirtualServer {
    let real_servers = view.real_servers.iter();
    api::VirtualServer {
        protocol: view.address.protocol.to_string(),
        address: (view.address.ip, view.address.port).into(),
        service: view.service.to_string(),
        exposure: view.exposure.to_string(),
        carried: view.address.protocol != Protocol::Sctp,
        scheduler: view.scheduler.to_string(),
        persistence_seconds: view.persistence.map(|time| time.as_secs()),
        real_servers: real_servers
            .map(|view| api::RealServer {
                rates: rates.real_servers.get(&view.address).copied(),
                ..real_server(view)
            })
            .collect(),
        rates: rates.rates,
        history: rates.history,
    }
}

fn counters(counted: &Counters) -> api::Counters {
    let dropped = counted.dropped.iter().filter(|(_, count)| *count > 0);
    let rejected = counted.rejected.iter().filter(|(_, count)| *count > 0);
    api::Counters {
        opened: counted.opened,
        failovers: counted.failovers,
        dropped: dropped.map(|(r, n)| (r.to_string(), *n)).collect(),
        rejected: rejected.map(|(r, n)| (r.to_string(), *n)).collect(),
    }
}

fn real_server(view: &RealServerView) -> api::RealServer {
    api::RealServer {
        address: view.address,
        forward: view.forward.to_string(),
        weight: view.weight,
        active_flows: view.active,
        inactive_flows: view.inactive,
        connections: view.connections,
        failed_attempts: view.failed,
        bytes_to_real_server: view.bytes_in,
        bytes_to_client: view.bytes_out,
        rates: None,
    }
}

fn flow(view: &FlowView) -> api::Flow {
    api::Flow {
        protocol: view.protocol.to_string(),
        state: view.state.to_owned(),
        expires_seconds: view.expires.map(|time| time.as_secs()),
        age_seconds: view.age.as_secs(),
        client: view.client,
        virtual_address: (view.virtual_server.ip, view.virtual_server.port).into(),
        real_server: view.real_server,
        source: view.source,
        bytes_to_real_server: view.bytes_in,
        bytes_to_client: view.bytes_out,
        service: view.service.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ipvs::{SchedulerKind, Table};
    use crate::service::VirtualServerSpec;
    use crate::service::{Change, ServicePortName, VirtualAddress};

    fn name() -> Arc<ServicePortName> {
        Arc::new(ServicePortName {
            namespace: "kube-system".into(),
            name: "kube-dns".into(),
            port: "dns".into(),
            protocol: Protocol::Udp,
        })
    }

    fn address() -> VirtualAddress {
        VirtualAddress {
            ip: [10, 0, 0, 10].into(),
            port: 53,
            protocol: Protocol::Udp,
        }
    }

    #[test]
    fn a_virtual_server_as_it_is_programmed() {
        let table = Table::new(SchedulerKind::Rr);
        table.apply(&Change::Upsert(VirtualServerSpec {
            real_servers: vec!["10.1.65.8:53".parse().unwrap()],
            serving: vec!["10.1.65.8:53".parse().unwrap()],
            persistence: Some(Duration::from_secs(600)),
            ..VirtualServerSpec::new(address(), name())
        }));
        let told: Vec<_> = table
            .snapshot()
            .iter()
            .map(|view| virtual_server(view, ServerRates::default()))
            .collect();
        assert_eq!(
            serde_json::to_value(&told).unwrap(),
            serde_json::json!([{
                "protocol": "UDP",
                "address": "10.0.0.10:53",
                "service": "kube-system/kube-dns:dns",
                "exposure": "ClusterIP",
                "carried": true,
                "scheduler": "rr",
                "persistenceSeconds": 600,
                "realServers": [{
                    "address": "10.1.65.8:53",
                    "forward": "Masq",
                    "weight": 1,
                    "activeFlows": 0,
                    "inactiveFlows": 0,
                    "connections": 0,
                    "failedAttempts": 0,
                    "bytesToRealServer": 0,
                    "bytesToClient": 0,
                }],
            }])
        );
    }

    #[test]
    fn a_flow_as_its_worker_has_it() {
        let told = flow(&FlowView {
            protocol: Protocol::Udp,
            client: "10.1.15.7:4000".parse().unwrap(),
            virtual_server: address(),
            service: name(),
            real_server: Some("10.1.65.8:53".parse().unwrap()),
            source: Some("10.1.15.0:33000".parse().unwrap()),
            state: "UDP",
            expires: Some(Duration::from_millis(29_900)),
            age: Duration::from_millis(100),
            bytes_in: 40,
            bytes_out: 0,
        });
        assert_eq!(
            serde_json::to_value(&told).unwrap(),
            serde_json::json!({
                "protocol": "UDP",
                "state": "UDP",
                "expiresSeconds": 29,
                "ageSeconds": 0,
                "client": "10.1.15.7:4000",
                "virtualAddress": "10.0.0.10:53",
                "realServer": "10.1.65.8:53",
                "source": "10.1.15.0:33000",
                "bytesToRealServer": 40,
                "bytesToClient": 0,
                "service": "kube-system/kube-dns:dns",
            })
        );
    }
}
