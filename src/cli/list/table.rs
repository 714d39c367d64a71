//! The tables of `list`, with ipvsadm's columns, so that what reads its tables
//! reads these. Ours is what stands at the end of a row: the service's name, by which
//! kind of address it is reached unless that is a cluster IP, and that SCTP is not carried.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use crate::admin::api::{AllCounters, Flow, Standing, VirtualServer};

const SERVICES_HEAD: &str = "\
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
";

const FLOWS_HEAD: &str =
    "pro expire state       source             virtual            destination\n";

/// Whether the proxy takes part, as a line before the table.
pub(super) fn standing(standing: &Standing) -> String {
    let what = if standing.active {
        "takes part"
    } else {
        "stands by"
    };
    format!(
        "Fallback {what} for {} s: {}\n",
        standing.since_seconds, standing.reason
    )
}
const COUNTERS_HEAD: &str = "Counter                             TUN          NodePorts\n";

/// Virtual servers with their real servers, as `ipvsadm -Ln`. Numeric: without
/// the services' names.
pub(super) fn services(virtual_servers: &[VirtualServer], numeric: bool) -> String {
    let mut text = SERVICES_HEAD.to_owned();
    for server in virtual_servers {
        let mut row = format!(
            "{:<4} {} {}",
            server.protocol, server.address, server.scheduler
        );
        if let Some(seconds) = server.persistence_seconds {
            row.push_str(&format!(" persistent {seconds}"));
        }
        if !numeric {
            row.push_str(&format!("  {}", server.service));
            // A cluster IP is what goes without saying.
            if !matches!(server.exposure.as_str(), "" | "ClusterIP") {
                row.push_str(&format!("  {}", server.exposure));
            }
            if !server.carried {
                row.push_str("  not carried");
            }
        }
        line(&mut text, &row);
        for real in &server.real_servers {
            line(
                &mut text,
                &format!(
                    "  -> {:<28} {:<7} {:<6} {:<10} {}",
                    real.address.to_string(),
                    real.forward,
                    real.weight,
                    real.active_flows,
                    real.inactive_flows
                ),
            );
        }
    }
    text
}

/// Flows, as `ipvsadm -Lnc`. Numeric: without the services' names.
pub(super) fn flows(flows: &[Flow], numeric: bool) -> String {
    let mut text = FLOWS_HEAD.to_owned();
    for flow in flows {
        let mut row = format!(
            "{:<3} {:<6} {:<11} {:<18} {:<18} {:<18}",
            flow.protocol,
            Expiry(flow.expires_seconds).to_string(),
            flow.state,
            flow.client.to_string(),
            flow.virtual_address.to_string(),
            or_dash(flow.real_server),
        );
        if !numeric {
            row.push_str(&format!(" {}", flow.service));
        }
        line(&mut text, &row);
    }
    text
}

/// What was counted, in a row each, of what comes through the TUN and through node
/// ports.
pub(super) fn counters(all: &AllCounters) -> String {
    let mut rows: BTreeMap<(u8, &str, &str), [u64; 2]> = BTreeMap::new();
    for (at, one) in [&all.tun, &all.node_ports].into_iter().enumerate() {
        rows.entry((0, "flows opened", "")).or_default()[at] = one.opened;
        rows.entry((1, "failovers", "")).or_default()[at] = one.failovers;
        for (reason, count) in &one.rejected {
            rows.entry((2, "refused", reason)).or_default()[at] = *count;
        }
        for (reason, count) in &one.dropped {
            rows.entry((3, "dropped", reason)).or_default()[at] = *count;
        }
    }
    let mut text = COUNTERS_HEAD.to_owned();
    for ((_, what, reason), [tun, node_ports]) in rows {
        let what = format!("{what} {reason}");
        line(&mut text, &format!("{what:<35} {tun:<12} {node_ports}"));
    }
    text
}

fn line(text: &mut String, row: &str) {
    text.push_str(row.trim_end());
    text.push('\n');
}

/// What is not there is a dash, so that columns stay countable.
fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// `minutes:seconds`, as ipvsadm; a dash for what never expires.
struct Expiry(Option<u64>);

impl Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(seconds) => write!(f, "{:02}:{:02}", seconds / 60, seconds % 60),
            None => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::RealServer;

    fn real(address: &str, weight: u32, active: u32, inactive: u32) -> RealServer {
        RealServer {
            address: address.parse().unwrap(),
            forward: "Masq".to_owned(),
            weight,
            active_flows: active,
            inactive_flows: inactive,
            connections: 0,
            failed_attempts: 0,
            bytes_to_real_server: 0,
            bytes_to_client: 0,
            rates: None,
        }
    }

    fn virtual_server(
        protocol: &str,
        address: &str,
        service: &str,
        persistence_seconds: Option<u64>,
        real_servers: Vec<RealServer>,
    ) -> VirtualServer {
        VirtualServer {
            protocol: protocol.to_owned(),
            address: address.parse().unwrap(),
            service: service.to_owned(),
            exposure: "ClusterIP".to_owned(),
            carried: true,
            scheduler: "rr".to_owned(),
            persistence_seconds,
            real_servers,
            rates: None,
            history: None,
        }
    }

    fn some_servers() -> Vec<VirtualServer> {
        vec![
            virtual_server(
                "TCP",
                "10.0.0.3:443",
                "kube-system/metrics-server:https",
                None,
                vec![real("10.1.65.5:443", 1, 1, 0)],
            ),
            virtual_server(
                "TCP",
                "10.0.23.176:80",
                "default/web",
                Some(10_800),
                vec![
                    real("10.1.37.12:8080", 1, 12, 345),
                    real("10.1.65.7:8080", 0, 3, 0),
                ],
            ),
            virtual_server(
                "UDP",
                "10.0.0.10:53",
                "kube-system/kube-dns:dns",
                None,
                vec![],
            ),
            virtual_server(
                "TCP",
                "[fd00:10::3]:443",
                "kube-system/metrics-server:https",
                None,
                vec![
                    real("[fd00:1:65::5]:443", 1, 0, 2),
                    real("[fd00:1:65:1:2:3:4:5555]:10250", 1, 0, 0),
                ],
            ),
        ]
    }

    #[test]
    fn virtual_servers() {
        assert_eq!(
            services(&some_servers(), false),
            "\
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.0.0.3:443 rr  kube-system/metrics-server:https
  -> 10.1.65.5:443                Masq    1      1          0
TCP  10.0.23.176:80 rr persistent 10800  default/web
  -> 10.1.37.12:8080              Masq    1      12         345
  -> 10.1.65.7:8080               Masq    0      3          0
UDP  10.0.0.10:53 rr  kube-system/kube-dns:dns
TCP  [fd00:10::3]:443 rr  kube-system/metrics-server:https
  -> [fd00:1:65::5]:443           Masq    1      0          2
  -> [fd00:1:65:1:2:3:4:5555]:10250 Masq    1      0          0
"
        );
    }

    #[test]
    fn virtual_servers_in_numbers() {
        assert_eq!(
            services(&some_servers()[..2], true),
            "\
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.0.0.3:443 rr
  -> 10.1.65.5:443                Masq    1      1          0
TCP  10.0.23.176:80 rr persistent 10800
  -> 10.1.37.12:8080              Masq    1      12         345
  -> 10.1.65.7:8080               Masq    0      3          0
"
        );
    }

    #[test]
    fn what_is_out_of_the_ordinary_is_said() {
        let mut port = virtual_server("TCP", "0.0.0.0:30080", "default/web", None, vec![]);
        port.exposure = "NodePort".to_owned();
        let mut sctp = virtual_server("SCTP", "10.0.0.9:3868", "default/diameter", None, vec![]);
        sctp.carried = false;
        let rows = services(&[port, sctp], false);
        assert_eq!(
            rows.strip_prefix(SERVICES_HEAD).unwrap(),
            "\
TCP  0.0.0.0:30080 rr  default/web  NodePort
SCTP 10.0.0.9:3868 rr  default/diameter  not carried
"
        );
    }

    #[test]
    fn counters_side_by_side() {
        let mut all = AllCounters::default();
        (all.tun.opened, all.node_ports.failovers) = (12_345, 2);
        all.tun.dropped.insert("source_range".to_owned(), 1);
        all.node_ports.dropped.insert("source_range".to_owned(), 3);
        all.node_ports.rejected.insert("flow_limit".to_owned(), 4);
        assert_eq!(
            counters(&all),
            "\
Counter                             TUN          NodePorts
flows opened                        12345        0
failovers                           0            2
refused flow_limit                  0            4
dropped source_range                1            3
"
        );
    }

    #[test]
    fn nothing_is_a_head() {
        assert_eq!(services(&[], false), SERVICES_HEAD);
        assert_eq!(flows(&[], false), FLOWS_HEAD);
    }

    fn some_flows() -> Vec<Flow> {
        let flow = |protocol: &str, state: &str, expires, client: &str, to: &str| Flow {
            protocol: protocol.to_owned(),
            state: state.to_owned(),
            expires_seconds: expires,
            age_seconds: 0,
            client: client.parse().unwrap(),
            virtual_address: to.parse().unwrap(),
            real_server: None,
            source: None,
            bytes_to_real_server: 0,
            bytes_to_client: 0,
            service: "default/web:http".to_owned(),
        };
        let to = |real: &str, flow| Flow {
            real_server: Some(real.parse().unwrap()),
            ..flow
        };
        vec![
            to(
                "10.1.65.5:443",
                flow(
                    "TCP",
                    "ESTABLISHED",
                    None,
                    "10.1.15.7:48080",
                    "10.0.0.3:443",
                ),
            ),
            to(
                "10.1.65.5:443",
                flow(
                    "TCP",
                    "FIN_WAIT",
                    Some(119),
                    "172.100.101.192:48081",
                    "10.0.224.12:443",
                ),
            ),
            flow(
                "TCP",
                "SYN_RECV",
                Some(3),
                "10.1.15.7:48082",
                "10.0.0.3:443",
            ),
            to(
                "[fd00:1::5]:53",
                flow(
                    "UDP",
                    "UDP",
                    Some(300),
                    "[fd00:1::9]:4000",
                    "[fd00:10::a]:53",
                ),
            ),
        ]
    }

    #[test]
    fn flows_with_services() {
        assert_eq!(
            flows(&some_flows(), false),
            "\
pro expire state       source             virtual            destination
TCP -      ESTABLISHED 10.1.15.7:48080    10.0.0.3:443       10.1.65.5:443      default/web:http
TCP 01:59  FIN_WAIT    172.100.101.192:48081 10.0.224.12:443    10.1.65.5:443      default/web:http
TCP 00:03  SYN_RECV    10.1.15.7:48082    10.0.0.3:443       -                  default/web:http
UDP 05:00  UDP         [fd00:1::9]:4000   [fd00:10::a]:53    [fd00:1::5]:53     default/web:http
"
        );
    }

    #[test]
    fn flows_in_numbers() {
        assert_eq!(
            flows(&some_flows()[..1], true),
            "\
pro expire state       source             virtual            destination
TCP -      ESTABLISHED 10.1.15.7:48080    10.0.0.3:443       10.1.65.5:443
"
        );
    }
}
