//! The configuration, in the words of those who follow it.

use crate::config::{Config, MasqueradeSource, Mode, PodTraffic, Source};
use crate::dataplane::{DataplaneConfig, Masquerade, TcpTimeouts};
use crate::node_port::NodePortConfig;
use crate::tun::{DEFAULT_MTU, LinkConfig};

pub(super) fn link_config(config: &Config, index: u32) -> LinkConfig {
    LinkConfig {
        addresses: LinkConfig::addresses_or_default(&config.tun.addresses),
        // Where they come and go they are kept by the keeper of routes.
        service_routes: match config.mode {
            Mode::Always => config.service_cidrs.clone(),
            Mode::Fallback => Vec::new(),
        },
        ..LinkConfig::new(config.tun.name.as_str(), index)
    }
}

pub(super) fn dataplane_config(config: &Config) -> DataplaneConfig {
    let flows = &config.flows;
    DataplaneConfig {
        connect_attempts: flows.connect_attempts,
        connect_timeout: flows.connect_timeout,
        answer_ping: flows.answer_ping,
        access_log: flows.access_log,
        masquerade: match &flows.masquerade_source {
            MasqueradeSource::Auto => Masquerade::Auto,
            MasqueradeSource::Interface(name) => Masquerade::Interface(name.to_string()),
            &MasqueradeSource::Address { v4, v6 } => Masquerade::Address { v4, v6 },
        },
        pod_traffic: match flows.pod_traffic {
            PodTraffic::Always => true,
            PodTraffic::Never => false,
            // Manifests hold no NetworkPolicies, so nothing speaks against pods;
            // what a cluster holds has to be seen first.
            PodTraffic::Auto => matches!(config.source, Source::Manifests(_)),
        },
        max_flows: flows.max_flows,
        max_memory: flows.max_memory,
        tcp_timeouts: TcpTimeouts {
            idle: flows.tcp_timeout,
            closing: flows.tcpfin_timeout,
        },
        udp_timeout: flows.udp_timeout,
        mtu: DEFAULT_MTU as usize,
    }
}

pub(super) fn node_port_config(config: &Config) -> NodePortConfig {
    NodePortConfig {
        addresses: config.node_port_addresses.clone(),
        except: LinkConfig::addresses_or_default(&config.tun.addresses),
        workers: config.tun.workers,
    }
}
