//! An explanation for people.

use crate::admin::api::{ExplainedEndpoint, ExplainedVirtualServer, Explanation, Placing};

/// All of it, a line for each thing and each endpoint.
pub(super) fn explanation(explanation: &Explanation) -> String {
    let mut text = Text::default();
    let head = format!("{} {}", explanation.protocol.as_str(), explanation.address);
    match &explanation.virtual_server {
        Some(server) => {
            text.line(&format!("{head}  {} ({})", server.service, server.exposure));
        }
        None => text.line(&head),
    }
    if let Some(origin) = explanation
        .virtual_server
        .as_ref()
        .and_then(|s| s.origin.as_ref())
    {
        text.field("file", origin);
    }
    let place = match explanation.client_is.as_str() {
        "node" => "this node",
        "pod" => "a pod of this node",
        _ => "outside",
    };
    text.field("client", &format!("{}, {place}", explanation.client));
    text.field("sees", &sees(explanation));
    if !explanation.others.is_empty() {
        text.field("served", &explanation.others.join(", "));
    }
    if let Some(server) = &explanation.virtual_server {
        self::server(&mut text, server, explanation);
    }
    text.0
}

fn sees(explanation: &Explanation) -> String {
    let outcome = &explanation.outcome;
    let server = outcome.affinity.as_ref().map(|a| a.real_server);
    match server.or(outcome.next) {
        Some(server) => format!("{server}"),
        None => outcome.words.clone(),
    }
}

fn server(text: &mut Text, server: &ExplainedVirtualServer, explanation: &Explanation) {
    text.field(
        "policies",
        &format!(
            "internal {}, external {}",
            server.internal_traffic_policy, server.external_traffic_policy
        ),
    );
    if server.topology != "none" {
        text.field("topology", &format!("hints for this {}", server.topology));
    }
    let outcome = &explanation.outcome;
    text.field(
        "scheduler",
        &match outcome.next {
            Some(next) => format!("{}, next {next}", server.scheduler),
            None => server.scheduler.clone(),
        },
    );
    if let Some(seconds) = server.persistence_seconds {
        let entry = match &outcome.affinity {
            Some(entry) => format!(
                "this client stays with {} for {} s more",
                entry.real_server, entry.seconds
            ),
            None => "nothing is remembered of this client".to_owned(),
        };
        text.field("affinity", &format!("ClientIP, {seconds} s; {entry}"));
    }
    if let Some(ranges) = &server.source_ranges {
        let ranges = match ranges.as_slice() {
            [] => "nobody".to_owned(),
            ranges => ranges.join(", "),
        };
        text.field("let in", &ranges);
    }
    if let Some(version) = &server.proxy_protocol {
        text.field("header", &format!("PROXY protocol {version}"));
    }
    let endpoints = &server.endpoints;
    let differ = endpoints.iter().any(|endpoint| endpoint.outside.is_some());
    if endpoints.is_empty() {
        text.line("endpoints: none");
    } else if differ {
        text.line("endpoints for this node and its pods:");
        rows(text, endpoints, |endpoint| Some(&endpoint.inside));
        text.line("endpoints for clients from outside:");
        rows(text, endpoints, |endpoint| endpoint.outside.as_ref());
    } else {
        text.line("endpoints:");
        rows(text, endpoints, |endpoint| Some(&endpoint.inside));
    }
}

fn rows(
    text: &mut Text,
    endpoints: &[ExplainedEndpoint],
    placing: impl Fn(&ExplainedEndpoint) -> Option<&Placing>,
) {
    for endpoint in endpoints {
        let Some(placing) = placing(endpoint) else {
            continue;
        };
        text.line(&format!(
            "  {:<3} {:<22} {:<12} {}",
            if placing.is_in { "in" } else { "out" },
            endpoint.address.to_string(),
            endpoint.node.as_deref().unwrap_or("-"),
            placing.reason
        ));
    }
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, line: &str) {
        self.0.push_str(line.trim_end());
        self.0.push('\n');
    }

    fn field(&mut self, name: &str, value: &str) {
        self.line(&format!("{:<11}{value}", format!("{name}:")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::{Affinity, Outcome, Protocol};

    fn placing(is_in: bool, reason: &str) -> Placing {
        Placing {
            is_in,
            reason: reason.to_owned(),
        }
    }

    fn some() -> Explanation {
        let endpoint = |address: &str, node: Option<&str>, inside, outside| ExplainedEndpoint {
            address: address.parse().unwrap(),
            node: node.map(str::to_owned),
            inside,
            outside: Some(outside),
        };
        Explanation {
            address: "5.6.7.8:80".parse().unwrap(),
            protocol: Protocol::Tcp,
            client: "203.0.113.2".parse().unwrap(),
            client_is: "outside".to_owned(),
            outcome: Outcome {
                verdict: "forward".to_owned(),
                reason: None,
                words: "carried to a real server".to_owned(),
                affinity: Some(Affinity {
                    real_server: "10.1.15.4:8080".parse().unwrap(),
                    seconds: 9800,
                }),
                next: Some("10.1.15.5:8080".parse().unwrap()),
            },
            virtual_server: Some(ExplainedVirtualServer {
                service: "default/web:http".to_owned(),
                origin: Some("web.yaml, document 2".to_owned()),
                exposure: "LoadBalancerIP".to_owned(),
                internal_traffic_policy: "Cluster".to_owned(),
                external_traffic_policy: "Local".to_owned(),
                topology: "zone".to_owned(),
                scheduler: "rr".to_owned(),
                persistence_seconds: Some(10_800),
                source_ranges: Some(vec!["203.0.113.0/25".to_owned()]),
                proxy_protocol: Some("v2".to_owned()),
                endpoints: vec![
                    endpoint(
                        "10.1.15.4:8080",
                        Some("master"),
                        placing(true, "ready"),
                        placing(true, "ready, on this node"),
                    ),
                    endpoint(
                        "10.1.65.5:8080",
                        None,
                        placing(false, "not ready"),
                        placing(false, "on no known node, and the policy is Local"),
                    ),
                ],
            }),
            others: Vec::new(),
        }
    }

    #[test]
    fn with_all_there_is() {
        assert_eq!(
            explanation(&some()),
            "\
TCP 5.6.7.8:80  default/web:http (LoadBalancerIP)
file:      web.yaml, document 2
client:    203.0.113.2, outside
sees:      10.1.15.4:8080
policies:  internal Cluster, external Local
topology:  hints for this zone
scheduler: rr, next 10.1.15.5:8080
affinity:  ClientIP, 10800 s; this client stays with 10.1.15.4:8080 for 9800 s more
let in:    203.0.113.0/25
header:    PROXY protocol v2
endpoints for this node and its pods:
  in  10.1.15.4:8080         master       ready
  out 10.1.65.5:8080         -            not ready
endpoints for clients from outside:
  in  10.1.15.4:8080         master       ready, on this node
  out 10.1.65.5:8080         -            on no known node, and the policy is Local
"
        );
    }

    #[test]
    fn without_a_service() {
        let nothing = Explanation {
            outcome: Outcome {
                verdict: "reject".to_owned(),
                reason: Some("unknown_port".to_owned()),
                words: "connection refused (RST): none on this port".to_owned(),
                affinity: None,
                next: None,
            },
            virtual_server: None,
            others: vec!["TCP 5.6.7.8:443".to_owned(), "UDP 5.6.7.8:53".to_owned()],
            ..some()
        };
        assert_eq!(
            explanation(&nothing),
            "\
TCP 5.6.7.8:80
client:    203.0.113.2, outside
sees:      connection refused (RST): none on this port
served:    TCP 5.6.7.8:443, UDP 5.6.7.8:53
"
        );
    }
}
