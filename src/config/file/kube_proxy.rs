//! KubeProxyConfiguration: all fields of kube-proxy 1.36, and of 1.37, which has the same
//! (`config/v1alpha1/types.go` of `k8s.io/kube-proxy` v0.36.0 and v0.37.0-beta.0, with
//! `ClientConnectionConfiguration` and `LoggingConfiguration` of component-base).
//!
//! kube-proxy writes every field, most of them as Go's zero values, which mean
//! defaults.

use serde_json::Value;

use super::schema::{Field, Meaning, Schema, Shape};

/// Fields that say what a flag says.
const FLAGS: &[(&str, Shape, &str)] = &[
    ("clientConnection.kubeconfig", Shape::Text, "kubeconfig"),
    ("clusterCIDR", Shape::Text, "cluster-cidr"),
    (
        "detectLocalMode",
        Shape::Choice(LOCAL_MODES),
        "detect-local-mode",
    ),
    ("healthzBindAddress", Shape::Text, "healthz-bind-address"),
    ("hostnameOverride", Shape::Text, "hostname-override"),
    ("ipvs.scheduler", Shape::Text, "ipvs-scheduler"),
    ("ipvs.tcpFinTimeout", Shape::Duration, "ipvs-tcpfin-timeout"),
    ("ipvs.tcpTimeout", Shape::Duration, "ipvs-tcp-timeout"),
    ("ipvs.udpTimeout", Shape::Duration, "ipvs-udp-timeout"),
    ("logging.format", Shape::Text, "log-format"),
    ("metricsBindAddress", Shape::Text, "metrics-bind-address"),
    ("nodePortAddresses", Shape::List, "nodeport-addresses"),
];

const ANY: Shape = Shape::Integer(i32::MIN as i64, i32::MAX as i64);

/// A mark of packets: one of 32 bits.
const BIT: Shape = Shape::Integer(0, 31);

/// Fields that concern the kernel's tables, Windows, or how kube-proxy is made.
const IGNORED: &[(&str, Shape)] = &[
    ("bindAddress", Shape::Text),
    ("bindAddressHardFail", Shape::Bool),
    ("clientConnection.acceptContentTypes", Shape::Text),
    ("clientConnection.burst", ANY),
    ("clientConnection.contentType", Shape::Text),
    ("clientConnection.qps", Shape::Number),
    ("configSyncPeriod", Shape::Duration),
    ("conntrack.maxPerCore", ANY),
    ("conntrack.min", ANY),
    ("conntrack.tcpBeLiberal", Shape::Bool),
    ("conntrack.tcpCloseWaitTimeout", Shape::Duration),
    ("conntrack.tcpEstablishedTimeout", Shape::Duration),
    ("conntrack.udpStreamTimeout", Shape::Duration),
    ("conntrack.udpTimeout", Shape::Duration),
    ("detectLocal.bridgeInterface", Shape::Text),
    ("detectLocal.interfaceNamePrefix", Shape::Text),
    ("enableProfiling", Shape::Bool),
    ("featureGates", Shape::Switches),
    ("iptables.localhostNodePorts", Shape::Bool),
    ("iptables.masqueradeAll", Shape::Bool),
    ("iptables.masqueradeBit", BIT),
    ("iptables.minSyncPeriod", Shape::Duration),
    ("iptables.syncPeriod", Shape::Duration),
    ("ipvs.excludeCIDRs", Shape::List),
    ("ipvs.minSyncPeriod", Shape::Duration),
    ("ipvs.strictARP", Shape::Bool),
    ("ipvs.syncPeriod", Shape::Duration),
    ("logging.flushFrequency", Shape::DurationOrNumber),
    ("logging.options.json.infoBufferSize", Shape::TextOrNumber),
    ("logging.options.json.splitStream", Shape::Bool),
    ("logging.options.text.infoBufferSize", Shape::TextOrNumber),
    ("logging.options.text.splitStream", Shape::Bool),
    ("logging.vmodule", Shape::Patterns),
    ("mode", Shape::Choice(MODES)),
    ("nftables.masqueradeAll", Shape::Bool),
    ("nftables.masqueradeBit", BIT),
    ("nftables.minSyncPeriod", Shape::Duration),
    ("nftables.syncPeriod", Shape::Duration),
    ("oomScoreAdj", Shape::Integer(-1000, 1000)),
    ("portRange", Shape::Text),
    ("showHiddenMetricsForVersion", Shape::Text),
    ("windowsRunAsService", Shape::Bool),
    ("winkernel.enableDSR", Shape::Bool),
    ("winkernel.forwardHealthCheckVip", Shape::Bool),
    ("winkernel.networkName", Shape::Text),
    ("winkernel.rootHnsEndpointName", Shape::Text),
    ("winkernel.sourceVip", Shape::Text),
];

const MODES: &[&str] = &["iptables", "ipvs", "nftables", "kernelspace"];

const LOCAL_MODES: &[&str] = &[
    "ClusterCIDR",
    "NodeCIDR",
    "BridgeInterface",
    "InterfaceNamePrefix",
];

/// What a document of kube-proxy may hold.
pub(super) fn schema() -> Schema {
    let field = |path: &str, shape, meaning| Field {
        path: path.to_owned(),
        shape,
        meaning,
    };
    let flags = FLAGS.iter().map(|&(path, shape, flag)| {
        let flag = flag.to_owned();
        field(path, shape, Meaning::Default { flag })
    });
    let ignored = IGNORED
        .iter()
        .map(|&(path, shape)| field(path, shape, Meaning::Ignored));
    let verbosity = field(
        "logging.verbosity",
        Shape::Integer(0, u32::MAX as i64),
        Meaning::Verbosity,
    );
    Schema {
        kind: "KubeProxyConfiguration",
        api_version: "kubeproxy.config.k8s.io/v1alpha1",
        fields: flags.chain(ignored).chain([verbosity]).collect(),
    }
}

/// What is logged at one of klog's levels: 4 is for debugging, 6 shows what is
/// exchanged (Kubernetes' logging conventions, sig-instrumentation/logging.md).
/// Nothing is said below that: what kube-proxy logs at 2 is logged here anyway.
pub(super) fn log_level(verbosity: &Value) -> Option<&'static str> {
    match verbosity.as_u64() {
        None | Some(0..=3) => None,
        Some(4 | 5) => Some("info,kube_client=off,kube_tun_proxy=debug"),
        Some(6..) => Some("info,kube_client=off,kube_tun_proxy=trace"),
    }
}
