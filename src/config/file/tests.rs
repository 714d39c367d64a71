use super::*;
use crate::config::settings::command;

/// What kubeadm 1.36 writes into the ConfigMap kube-proxy under config.conf.
const KUBEADM: &str = r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.1.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

/// What kube-proxy 1.36.2 writes with `--write-config-to`.
const WRITTEN: &str = r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 10
  contentType: application/vnd.kubernetes.protobuf
  kubeconfig: ""
  qps: 5
clusterCIDR: ""
configSyncPeriod: 15m0s
conntrack:
  maxPerCore: 32768
  min: 131072
  tcpBeLiberal: false
  tcpCloseWaitTimeout: 1h0m0s
  tcpEstablishedTimeout: 24h0m0s
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ClusterCIDR
enableProfiling: false
healthzBindAddress: 0.0.0.0:10256
hostnameOverride: ""
iptables:
  localhostNodePorts: true
  masqueradeAll: false
  masqueradeBit: 14
  minSyncPeriod: 1s
  syncPeriod: 30s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 5s
  format: text
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: 127.0.0.1:10249
mode: iptables
nftables:
  masqueradeAll: false
  masqueradeBit: 14
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: -999
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

const KUBE: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

const TUN: &str = "apiVersion: kube-tun-proxy/v1alpha1\nkind: TunProxyConfiguration\n";

fn parse(text: &str) -> Result<File, String> {
    File::parse(text, &command()).map_err(|error| error.to_string())
}

/// Flags with their values, as a command line would have them.
fn words(file: &File) -> Vec<String> {
    let words = |(flag, setting): (&String, &Setting)| {
        let values = setting.values.iter();
        values.map(|v| format!("{flag}={v}")).collect::<Vec<_>>()
    };
    file.settings.iter().flat_map(words).collect()
}

#[test]
fn kubeadms_file_says_where_the_cluster_is_and_nothing_else() {
    let file = parse(KUBEADM).unwrap();
    assert_eq!(
        words(&file),
        [
            "cluster-cidr=10.1.0.0/16",
            "kubeconfig=/var/lib/kube-proxy/kubeconfig.conf"
        ]
    );
    assert!(file.ignored.is_empty());
}

#[test]
fn what_kube_proxy_itself_writes_is_read() {
    let file = parse(WRITTEN).unwrap();
    assert_eq!(
        words(&file),
        [
            "detect-local-mode=ClusterCIDR",
            "healthz-bind-address=0.0.0.0:10256",
            "log-format=text",
            "metrics-bind-address=127.0.0.1:10249",
        ]
    );
    assert_eq!(file.ignored.len(), 16, "{:?}", file.ignored);
    assert!(file.ignored.contains(&"mode".to_owned()));
}

#[test]
fn what_applies_of_kube_proxys_file_is_used_and_the_rest_is_named() {
    let text = format!(
        "{KUBE}
hostnameOverride: node-1
healthzBindAddress: 127.0.0.1:10256
mode: ipvs
bindAddress: 192.168.0.10
detectLocalMode: ClusterCIDR
nodePortAddresses: [192.168.0.0/24, primary]
featureGates: {{KubeProxyIPVS: true}}
oomScoreAdj: -999
clientConnection: {{qps: 5, burst: 10}}
conntrack: {{maxPerCore: 32768, tcpCloseWaitTimeout: 1h0m0s}}
iptables: {{masqueradeBit: 14, syncPeriod: 30s, localhostNodePorts: true}}
ipvs: {{scheduler: wlc, tcpTimeout: 15m, tcpFinTimeout: 1m, udpTimeout: 10s, excludeCIDRs: [10.9.0.0/16]}}
logging: {{format: json, verbosity: 4, flushFrequency: 5s, vmodule: [{{filePattern: proxier, verbosity: 5}}]}}
"
    );
    let file = parse(&text).unwrap();
    assert_eq!(
        words(&file),
        [
            "detect-local-mode=ClusterCIDR",
            "healthz-bind-address=127.0.0.1:10256",
            "hostname-override=node-1",
            "ipvs-scheduler=wlc",
            "ipvs-tcp-timeout=15m",
            "ipvs-tcpfin-timeout=1m",
            "ipvs-udp-timeout=10s",
            "log-format=json",
            "log-level=info,kube_client=off,kube_tun_proxy=debug",
            "nodeport-addresses=192.168.0.0/24",
            "nodeport-addresses=primary",
        ]
    );
    let mut ignored = file.ignored;
    ignored.sort();
    assert_eq!(
        ignored,
        [
            "bindAddress",
            "clientConnection.burst",
            "clientConnection.qps",
            "conntrack.maxPerCore",
            "conntrack.tcpCloseWaitTimeout",
            "featureGates",
            "iptables.localhostNodePorts",
            "iptables.masqueradeBit",
            "iptables.syncPeriod",
            "ipvs.excludeCIDRs",
            "logging.flushFrequency",
            "logging.vmodule",
            "mode",
            "oomScoreAdj",
        ]
    );
}

#[test]
fn what_is_wrong_is_named_with_document_and_path() {
    let kube = |fields: &str| format!("{KUBE}{fields}\n");
    let tun = |fields: &str| format!("{TUN}{fields}\n");
    for (text, told) in [
        (
            kube("ipvs: {sheduler: rr}"),
            "document 1, ipvs.sheduler: is unknown to KubeProxy",
        ),
        (
            kube("clusterCidr: a"),
            "document 1, clusterCidr: is unknown; there is clusterCIDR",
        ),
        (
            kube("ipvs: rr"),
            "document 1, ipvs: is text, must be an object",
        ),
        (
            kube("ipvs: {scheduler: 5}"),
            "document 1, ipvs.scheduler: is a number, must be text",
        ),
        (
            kube("ipvs: {scheduler: best}"),
            "document 1, ipvs.scheduler: 'best' ",
        ),
        (
            kube("ipvs: {tcpTimeout: 5}"),
            "document 1, ipvs.tcpTimeout: is a number, must be",
        ),
        (
            kube("ipvs: {syncPeriod: -5s}"),
            "document 1, ipvs.syncPeriod: '-5s' is negative",
        ),
        (
            kube("mode: userspace"),
            "mode: 'userspace' is none of iptables, ipvs, nftables",
        ),
        (
            kube("iptables: {masqueradeBit: 32}"),
            "masqueradeBit: '32' is not between 0 and 31",
        ),
        (
            kube("iptables: {masqueradeAll: 'no'}"),
            "masqueradeAll: is text, must be true or false",
        ),
        (
            kube("conntrack: {min: 1.5}"),
            "conntrack.min: '1.5' is no whole number",
        ),
        (
            kube("featureGates: {A: 1}"),
            "featureGates: has a number under A",
        ),
        (
            kube("nodePortAddresses: primary"),
            "nodePortAddresses: is text, must be a list",
        ),
        (
            kube("nodePortAddresses: [1.2.3.4]"),
            "nodePortAddresses: '1.2.3.4' is neither",
        ),
        (
            kube("logging: {format: klog}"),
            "logging.format: 'klog' is none of text, json",
        ),
        (
            kube("logging: {vmodule: [{pattern: a}]}"),
            "logging.vmodule: has an item with the",
        ),
        (
            tun("ipvsSheduler: rr"),
            "document 1, ipvsSheduler: is unknown to TunProxyConf",
        ),
        (
            tun("serviceCIDR: a"),
            "serviceCIDR: is unknown; there is serviceCidr",
        ),
        (tun("config: /a"), "document 1, config: is unknown"),
        (tun("connectTimeout: 1"), "connectTimeout: '1' lacks a unit"),
        (
            tun("connectAttempts: three"),
            "connectAttempts: is text, must be a number",
        ),
        (
            tun("connectAttempts: 0"),
            "connectAttempts: '0' 0 is not in 1..=100",
        ),
        (
            tun("answerPing: maybe"),
            "answerPing: is text, must be true or false",
        ),
        (
            tun("podTraffic: some"),
            "podTraffic: 'some' is none of auto, always, never",
        ),
        (
            tun("tunName: {a: b}"),
            "tunName: is an object, must be text",
        ),
        (
            tun("serviceCidr: [10.0.0.0/33]"),
            "serviceCidr: '10.0.0.0/33' is no network",
        ),
        (
            format!("{KUBE}---\n{KUBE}"),
            "document 2 there is a KubeProxyConfiguration before it",
        ),
        (
            format!("{TUN}---\n{TUN}tunName: t"),
            "document 2 there is a TunProxyConfiguration",
        ),
        ("- a".to_owned(), "document 1 is a list, no object"),
        ("kind: A".to_owned(), "document 1 has no apiVersion"),
        (
            "apiVersion: v1\nkind: ConfigMap".to_owned(),
            "document 1 is the ConfigMap itself; the file is what stands in it under data.config",
        ),
        (
            format!(
                "{TUN}---\napiVersion: kubeproxy.config.k8s.io/v1alpha2\nkind: KubeProxyConfiguration"
            ),
            "document 2 is of the kind KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha2)",
        ),
        (
            tun("workers: 2\nworkers: 3"),
            "duplicate mapping key: workers",
        ),
        (tun("a: [b"), "line 3"),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(error.contains(told), "{text}\n{error:?} lacks {told:?}");
        assert!(!error.contains('\n'), "{error:?}");
    }
}

#[test]
fn the_second_kind_wins_wherever_it_stands() {
    let kube = format!("{KUBE}ipvs: {{scheduler: lc, udpTimeout: 10s}}\n");
    let tun = format!("{TUN}ipvsScheduler: sh\nworkers: null\n");
    for text in [
        format!("{kube}---\n{tun}"),
        format!("{tun}---\n# -\n---\n{kube}"),
    ] {
        let file = parse(&text).unwrap();
        assert_eq!(words(&file), ["ipvs-scheduler=sh", "ipvs-udp-timeout=10s"]);
    }
    let manifests = format!("{KUBEADM}---\n{TUN}manifests: /m\n");
    assert_eq!(
        words(&parse(&manifests).unwrap()),
        ["cluster-cidr=10.1.0.0/16", "manifests=/m"]
    );
    assert_eq!(words(&parse("").unwrap()), [""; 0]);
}

#[test]
fn every_field_of_kube_proxy_leads_to_a_flag_that_is_there() {
    let command = command();
    let schema = kube_proxy::schema();
    let mut paths: Vec<_> = schema.fields.iter().map(|field| &field.path).collect();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), schema.fields.len());
    for field in &schema.fields {
        if let Meaning::Default { flag } | Meaning::Flag(flag) = &field.meaning {
            let known = command
                .get_arguments()
                .any(|arg| arg.get_long() == Some(flag));
            assert!(known, "{flag}");
        }
    }
}

#[test]
fn flags_are_named_in_camel_case() {
    assert_eq!(field_of("ipvs-tcpfin-timeout"), "ipvsTcpfinTimeout");
    assert_eq!(field_of("workers"), "workers");
}
