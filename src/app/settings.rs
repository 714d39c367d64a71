//! The configuration, in the words of those who follow it.

use ipnet::IpNet;
use tracing::warn;

use super::routes::Wanted;
use crate::admin::health::Family;
use crate::config::{Config, DetectLocalMode, MasqueradeSource, Mode, PodTraffic, Source};
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
        busy_poll: flows.busy_poll,
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

pub(super) fn wanted_routes(config: &Config) -> Wanted {
    let mut wanted = if config.service_cidrs.is_empty() {
        Wanted::default()
    } else {
        Wanted::beside(config.service_cidrs.clone())
    };
    if config.fixed_routes {
        wanted = wanted.only_fixed();
    }
    if config.mode == Mode::Fallback {
        wanted = wanted.idle();
    }
    wanted
}

/// Networks by which pods are told, beside those that the Node names.
pub(super) fn cluster_cidrs(config: &Config) -> Vec<IpNet> {
    let mode = config.detect_local_mode;
    if mode.needs_interface() {
        warn!(
            mode = mode.as_str(),
            "the interface that a packet came in by is not seen here: pods are told by the \
             networks that the Node object names"
        );
    }
    match mode {
        DetectLocalMode::ClusterCidr => config.cluster_cidrs.clone(),
        DetectLocalMode::NodeCidr
        | DetectLocalMode::BridgeInterface
        | DetectLocalMode::InterfaceNamePrefix => Vec::new(),
    }
}

/// The families of the service ranges; both while these are not known.
pub(super) fn families(service_cidrs: &[IpNet]) -> Vec<Family> {
    if service_cidrs.is_empty() {
        return vec![Family::IPv4, Family::IPv6];
    }
    let family = |net: &IpNet| match net {
        IpNet::V4(_) => Family::IPv4,
        IpNet::V6(_) => Family::IPv6,
    };
    service_cidrs.iter().map(family).collect()
}
