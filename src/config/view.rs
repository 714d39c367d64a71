//! The configuration as `/configz` shows it.

use serde_json::{Value, json};

use super::duration;
use super::{Config, LogFormat, MasqueradeSource, PodTraffic, Source};

impl Config {
    /// Every setting under the name of its flag, as text that the flag would take, and
    /// with what was filled in for those that were not given. It holds no secret: where
    /// credentials are read from, not what they are.
    pub fn view(&self) -> Value {
        let (manifests, kubeconfig, master) = match &self.source {
            Source::Manifests(path) => (Some(path.display().to_string()), None, None),
            Source::Cluster { kubeconfig, master } => (
                None,
                kubeconfig.as_ref().map(|path| path.display().to_string()),
                master.as_ref().map(ToString::to_string),
            ),
        };
        let masquerade = match &self.flows.masquerade_source {
            MasqueradeSource::Auto => "auto".to_owned(),
            MasqueradeSource::Interface(name) => name.to_string(),
            MasqueradeSource::Address { v4, v6 } => {
                let v4 = v4.iter().map(ToString::to_string);
                let v6 = v6.iter().map(ToString::to_string);
                v4.chain(v6).collect::<Vec<_>>().join(",")
            }
        };
        let pod_traffic = match self.flows.pod_traffic {
            PodTraffic::Auto => "auto",
            PodTraffic::Always => "always",
            PodTraffic::Never => "never",
        };
        let log_format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        let texts = |all: &mut dyn Iterator<Item = String>| all.collect::<Vec<_>>();
        let flows = &self.flows;
        json!({ "kube-tun-proxy": {
            "manifests": manifests,
            "kubeconfig": kubeconfig,
            "master": master,
            "hostname-override": self.node_name,
            "service-cidr": texts(&mut self.service_cidrs.iter().map(ToString::to_string)),
            "tun-name": self.tun.name.as_str(),
            "workers": self.tun.workers,
            "tun-address": texts(&mut self.tun.addresses.iter().map(ToString::to_string)),
            "masquerade-source": masquerade,
            "pod-traffic": pod_traffic,
            "ipvs-scheduler": flows.scheduler.to_string(),
            "ipvs-compat": flows.ipvs_compat,
            "ipvs-tcp-timeout": duration::format(flows.tcp_timeout.unwrap_or_default()),
            "ipvs-tcpfin-timeout": duration::format(flows.tcpfin_timeout),
            "ipvs-udp-timeout": duration::format(flows.udp_timeout),
            "connect-attempts": flows.connect_attempts,
            "connect-timeout": duration::format(flows.connect_timeout),
            "answer-ping": flows.answer_ping,
            "max-flows": flows.max_flows,
            "max-memory": flows.max_memory,
            "nodeport-addresses":
                texts(&mut self.node_port_addresses.iter().map(ToString::to_string)),
            "healthz-bind-address": address(self.healthz_bind_address),
            "metrics-bind-address": address(self.metrics_bind_address),
            "metrics-max-services": self.metrics_max_services,
            "admin-socket": self.admin_socket.display().to_string(),
            "drain-timeout": duration::format(self.drain_timeout),
            "log-format": log_format,
        }})
    }
}

/// Empty is nowhere.
fn address(address: Option<std::net::SocketAddr>) -> String {
    address
        .map(|address| address.to_string())
        .unwrap_or_default()
}
