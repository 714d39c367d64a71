//! What this node has and lacks for the proxy: a [`Finding`] for each thing that it
//! needs or that may get in its way, with the command that mends it.
//!
//! [`check`] looks once, on the present runtime and in the network namespace of the
//! calling thread, and changes nothing. It owns no task beyond its own end.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::config::Config;
use crate::node::kube_proxy::{self, Answer};
use crate::node::links::Node;

mod cluster;
mod device;
mod kernel;
mod limits;
mod ports;
mod routing;

/// Time for all that the API server is asked when the proxy asks: whoever looks at a page
/// does not wait for longer, and what is slower than this is worth a warning.
const API_SERVER: Duration = Duration::from_secs(5);

/// What is said of things that are there to be seen, but not by this process.
const UNSEEN: &str = "not seen without privilege";

/// How a finding is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// The proxy runs, but somebody may miss something.
    Warning,
    /// The proxy does not start, or services are not reached.
    Failure,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: `tun-driver`.
    pub subject: String,
    /// How it is meant.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What mends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    fn ok(subject: &str, found: impl Into<String>) -> Self {
        Self {
            subject: subject.to_owned(),
            level: Level::Ok,
            found: found.into(),
            mend: None,
        }
    }

    fn warning(subject: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            mend: Some(mend.into()),
            ..Self::ok(subject, found)
        }
    }

    fn failure(subject: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            level: Level::Failure,
            ..Self::warning(subject, found, mend)
        }
    }

    /// Something could not be looked at.
    fn unknown(subject: &str, what: &str, error: impl fmt::Display) -> Self {
        Self {
            level: Level::Warning,
            ..Self::ok(subject, format!("{what} cannot be read: {error}"))
        }
    }
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// In a fixed order of subjects.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst level of all.
    pub fn level(&self) -> Level {
        let levels = self.findings.iter().map(|finding| finding.level);
        levels.max().unwrap_or(Level::Ok)
    }
}

/// What is held against the node.
#[derive(Clone, Debug)]
pub struct Question {
    /// What `run` is going to be told.
    pub config: Config,
    /// Flannel's subnet file.
    pub subnet_file: PathBuf,
    /// Who asks.
    pub asker: Asker,
}

/// Who asks, and so what is whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A command, before the proxy is started or beside it.
    Command,
    /// The proxy that runs with this configuration: device, routes and ports are its own,
    /// and it may have given up privileges that it had.
    Proxy,
}

/// What several looks need.
struct Surroundings<'a> {
    config: &'a Config,
    node: Node,
    /// The addresses that the TUN is going to have.
    tun_addresses: Vec<IpAddr>,
    /// Who answers on kube-proxy's health port.
    kube_proxy: Answer,
    kube_proxy_at: SocketAddr,
    asker: Asker,
    /// Whether a proxy of ours is there: the one that asks, or one that answers.
    running: bool,
}

/// Looks at everything.
///
/// # Errors
///
/// There is no netlink socket to be had, without which nothing is known.
pub async fn check(question: &Question) -> std::io::Result<Report> {
    let config = &question.config;
    let kube_proxy_at = config.kube_proxy_healthz;
    let kube_proxy = kube_proxy::ask(kube_proxy_at).await;
    let around = Surroundings {
        config,
        node: Node::open()?,
        tun_addresses: crate::tun::LinkConfig::addresses_or_default(&config.tun.addresses),
        kube_proxy,
        kube_proxy_at,
        asker: question.asker,
        running: question.asker == Asker::Proxy
            || kube_proxy == Answer::OneOfUs
            || answers(config).await,
    };
    let mut findings = vec![device::driver(&around)];
    findings.push(device::capabilities(&around).await);
    findings.push(device::device(&around).await);
    findings.push(kernel::ipvs(&around).await);
    findings.push(kernel::ipvs_device(&around).await);
    findings.push(kernel::netfilter(&around));
    findings.push(kernel::kube_proxy(&around));
    findings.push(ports::healthz(&around));
    findings.push(ports::metrics(&around));
    findings.extend(routing::routes(&around).await);
    findings.push(routing::rules(&around).await);
    findings.push(routing::flannel(&around, &question.subnet_file).await);
    findings.extend(routing::forwarding(&around));
    findings.push(routing::reverse_path(&around).await);
    findings.push(limits::ports());
    findings.push(limits::time_wait());
    findings.push(limits::open_files(config.flows.max_flows));
    findings.extend(match around.asker {
        Asker::Command => cluster::cluster(&around).await,
        Asker::Proxy => timeout(API_SERVER, cluster::cluster(&around))
            .await
            .unwrap_or_else(|_| vec![cluster::slow(API_SERVER)]),
    });
    Ok(Report { findings })
}

/// Whether a proxy of ours answers on the admin socket, or where health is to be told: the
/// socket may be another user's, or in a container.
async fn answers(config: &Config) -> bool {
    if UnixStream::connect(&config.admin_socket).await.is_ok() {
        return true;
    }
    let Some(healthz) = config.healthz_bind_address else {
        return false;
    };
    kube_proxy::ask(reached(healthz)).await == Answer::OneOfUs
}

/// Where a listener at this address answers the node itself.
fn reached(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// A setting of this network namespace, `net/ipv4/ip_forward`.
fn sysctl(key: &str) -> std::io::Result<String> {
    let text = std::fs::read_to_string(format!("/proc/sys/{key}"))?;
    Ok(text.trim_end().to_owned())
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_for_every_address_is_asked_on_loopback() {
        for (address, at) in [
            ("0.0.0.0:10256", "127.0.0.1:10256"),
            ("[::]:10256", "[::1]:10256"),
            ("10.0.0.1:9", "10.0.0.1:9"),
        ] {
            assert_eq!(reached(address.parse().unwrap()).to_string(), at);
        }
    }

    #[test]
    fn the_worst_counts() {
        let report = |findings: &[Finding]| Report {
            findings: findings.to_vec(),
        };
        let fine = Finding::ok("a", "fine");
        let odd = Finding::warning("b", "odd", "mend it");
        let bad = Finding::failure("c", "bad", "mend it");
        assert_eq!(report(&[]).level(), Level::Ok);
        assert_eq!(report(&[fine.clone(), odd.clone()]).level(), Level::Warning);
        assert_eq!(report(&[bad, fine, odd]).level(), Level::Failure);
    }
}
