//! A configuration as the document that would say the same: what `configz` shows
//! and what tells whether a setting has changed.

use serde_json::{Map, Value, json};

use super::file::{API_VERSION, KIND, field_of};
use super::{Config, FlowConfig, LogFormat, MasqueradeSource, Mode, PodTraffic, Source, TunConfig};
use super::{duration, values::ListenAddress};

impl Config {
    /// Every setting with the value in effect, under the name that it has in a
    /// TunProxyConfiguration. What is not given and has no default is absent.
    pub fn settings(&self) -> Map<String, Value> {
        let mut settings = Map::new();
        let mut set = |flag: &str, value: Value| {
            settings.insert(field_of(flag), value);
        };
        match &self.source {
            Source::Manifests(path) => set("manifests", json!(path)),
            Source::Cluster { kubeconfig, master } => {
                if let Some(path) = kubeconfig {
                    set("kubeconfig", json!(path));
                }
                if let Some(uri) = master {
                    set("master", json!(uri.to_string()));
                }
            }
        }
        set("hostname-override", json!(self.node_name));
        set("service-cidr", texts(&self.service_cidrs));
        set("cluster-cidr", texts(&self.cluster_cidrs));
        let detect = self.detect_local_mode.as_str();
        set("detect-local-mode", json!(detect));
        let TunConfig {
            name,
            addresses,
            workers,
        } = &self.tun;
        set("tun-name", json!(name.as_str()));
        set("tun-address", texts(addresses));
        set("workers", json!(workers));
        self.flows.settings(&mut set);
        set("nodeport-addresses", texts(&self.node_port_addresses));
        set("fixed-routes", json!(self.fixed_routes));
        let mode = match self.mode {
            Mode::Always => "always",
            Mode::Fallback => "fallback",
        };
        set("mode", json!(mode));
        set("kube-proxy-healthz", json!(self.kube_proxy_healthz));
        let healthz = ListenAddress(self.healthz_bind_address);
        set("healthz-bind-address", json!(healthz.to_string()));
        let metrics = ListenAddress(self.metrics_bind_address);
        set("metrics-bind-address", json!(metrics.to_string()));
        set("metrics-max-services", json!(self.metrics_max_services));
        set("admin-socket", json!(self.admin_socket));
        set("drain-timeout", time(self.drain_timeout));
        set("takeover-drain-timeout", time(self.takeover_drain_timeout));
        let format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        set("log-format", json!(format));
        set("log-level", json!(self.log_level.as_str()));
        settings
    }

    /// The configuration in effect as a TunProxyConfiguration: read again, it is
    /// this configuration.
    pub fn document(&self) -> Value {
        let mut document = self.settings();
        document.insert("apiVersion".to_owned(), json!(API_VERSION));
        document.insert("kind".to_owned(), json!(KIND));
        Value::Object(document)
    }
}

impl FlowConfig {
    fn settings(&self, set: &mut impl FnMut(&str, Value)) {
        let Self {
            scheduler,
            ipvs_compat,
            masquerade_source,
            pod_traffic,
            tcp_timeout,
            tcpfin_timeout,
            udp_timeout,
            connect_attempts,
            connect_timeout,
            answer_ping,
            access_log,
            max_flows,
            max_memory,
            busy_poll,
        } = self;
        set("ipvs-scheduler", json!(scheduler.to_string()));
        set("ipvs-compat", json!(ipvs_compat));
        let source = match masquerade_source {
            MasqueradeSource::Auto => "auto".to_owned(),
            MasqueradeSource::Interface(name) => name.to_string(),
            MasqueradeSource::Address { v4, v6 } => {
                let (v4, v6) = (v4.map(|a| a.to_string()), v6.map(|a| a.to_string()));
                v4.into_iter().chain(v6).collect::<Vec<_>>().join(",")
            }
        };
        set("masquerade-source", json!(source));
        let pods = match pod_traffic {
            PodTraffic::Auto => "auto",
            PodTraffic::Always => "always",
            PodTraffic::Never => "never",
        };
        set("pod-traffic", json!(pods));
        set("ipvs-tcp-timeout", time(tcp_timeout.unwrap_or_default()));
        set("ipvs-tcpfin-timeout", time(*tcpfin_timeout));
        set("ipvs-udp-timeout", time(*udp_timeout));
        set("connect-attempts", json!(connect_attempts));
        set("connect-timeout", time(*connect_timeout));
        set("answer-ping", json!(answer_ping));
        set("access-log", json!(access_log));
        set("max-flows", json!(max_flows));
        set("max-memory", json!(max_memory));
        set("busy-poll", time(*busy_poll));
    }
}

fn texts<T: ToString>(items: &[T]) -> Value {
    items.iter().map(ToString::to_string).collect()
}

fn time(duration: std::time::Duration) -> Value {
    json!(duration::format(duration))
}
