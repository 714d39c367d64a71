//! Which flows are asked for.

use std::cmp::Reverse;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::FLOWS;
use crate::dataplane::FlowView;
use crate::ipvs::ServicePortName;

/// The query of [`FLOWS`]: a flow is told if it fits everything that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowFilter {
    /// Of this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceFilter>,
    /// Opened from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<AddressFilter>,
    /// Carried to there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real_server: Option<AddressFilter>,
    /// In this state, as `list --flows` names it, in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Their order.
    #[serde(default)]
    pub sort: FlowSort,
    /// How many of them at most, after sorting; absent is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// What flows are sorted by. Those that are equal are in the order of
/// [`Client`](Self::Client).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FlowSort {
    /// Protocol, client and virtual address.
    #[default]
    Client,
    /// The service's name.
    Service,
    /// Real server; those without one first.
    RealServer,
    /// Name of the state.
    State,
    /// Those with most bytes, both ways together, first.
    Bytes,
    /// The oldest first.
    Age,
}

impl FlowFilter {
    /// Path and query to ask with.
    pub fn path(&self) -> String {
        let mut query = Vec::new();
        let mut add = |name: &str, value: String| query.push(format!("{name}={value}"));
        if let Some(service) = &self.service {
            add("service", escape(&service.to_string()));
        }
        if let Some(client) = &self.client {
            add("client", escape(&client.to_string()));
        }
        if let Some(real_server) = &self.real_server {
            add("realServer", escape(&real_server.to_string()));
        }
        if let Some(state) = &self.state {
            add("state", escape(state));
        }
        if self.sort != FlowSort::Client {
            add("sort", self.sort.as_str().to_owned());
        }
        if let Some(limit) = self.limit {
            add("limit", limit.to_string());
        }
        if query.is_empty() {
            FLOWS.to_owned()
        } else {
            format!("{FLOWS}?{}", query.join("&"))
        }
    }

    /// Whether a flow is asked for.
    pub fn takes(&self, flow: &FlowView) -> bool {
        let fits = |filter: &Option<AddressFilter>, address: Option<SocketAddr>| {
            filter
                .as_ref()
                .is_none_or(|filter| address.is_some_and(|address| filter.takes(address)))
        };
        self.service
            .as_ref()
            .is_none_or(|service| service.takes(&flow.service))
            && fits(&self.client, Some(flow.client))
            && fits(&self.real_server, flow.real_server)
            && self
                .state
                .as_ref()
                .is_none_or(|state| state.eq_ignore_ascii_case(flow.state))
    }

    /// Leaves those that are asked for, in order. Returns how many there were before
    /// the limit.
    pub fn apply(&self, flows: &mut Vec<FlowView>) -> usize {
        flows.retain(|flow| self.takes(flow));
        // The sort below keeps the order of equals.
        flows.sort_unstable_by_key(|flow| (flow.protocol, flow.client, flow.virtual_server));
        match self.sort {
            FlowSort::Client => {}
            FlowSort::Service => flows.sort_by(|a, b| a.service.cmp(&b.service)),
            FlowSort::RealServer => flows.sort_by_key(|flow| flow.real_server),
            FlowSort::State => flows.sort_by_key(|flow| flow.state),
            FlowSort::Bytes => {
                flows.sort_by_key(|flow| Reverse(flow.bytes_in.saturating_add(flow.bytes_out)));
            }
            FlowSort::Age => flows.sort_by_key(|flow| Reverse(flow.age)),
        }
        let all = flows.len();
        flows.truncate(self.limit.unwrap_or(usize::MAX));
        all
    }
}

impl FlowSort {
    /// The name in a query.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Service => "service",
            Self::RealServer => "realServer",
            Self::State => "state",
            Self::Bytes => "bytes",
            Self::Age => "age",
        }
    }
}

/// A service, or one port of it: `NAMESPACE/NAME[:PORT]`, where PORT is its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceFilter {
    namespace: String,
    name: String,
    port: Option<String>,
}

/// What is no [`ServiceFilter`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("is no service; one looks like kube-system/kube-dns or kube-system/kube-dns:metrics")]
pub struct NoService;

impl ServiceFilter {
    fn takes(&self, service: &ServicePortName) -> bool {
        *self.namespace == *service.namespace
            && *self.name == *service.name
            && self
                .port
                .as_deref()
                .is_none_or(|port| port == &*service.port)
    }
}

impl FromStr for ServiceFilter {
    type Err = NoService;

    fn from_str(text: &str) -> Result<Self, NoService> {
        let (namespace, rest) = text.split_once('/').ok_or(NoService)?;
        let (name, port) = match rest.split_once(':') {
            Some((name, port)) => (name, Some(port.to_owned())),
            None => (rest, None),
        };
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return Err(NoService);
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            port,
        })
    }
}

impl fmt::Display for ServiceFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        match &self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// An address with any port, or with this one: `ADDRESS[:PORT]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressFilter {
    ip: IpAddr,
    port: Option<u16>,
}

/// What is no [`AddressFilter`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("is no address; one looks like 10.1.15.7, 10.1.15.7:48080, fd00::7 or [fd00::7]:48080")]
pub struct NoAddress;

impl AddressFilter {
    /// Whether the address is asked for.
    pub fn takes(&self, address: SocketAddr) -> bool {
        self.ip == address.ip() && self.port.is_none_or(|port| port == address.port())
    }
}

impl FromStr for AddressFilter {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            let port = Some(address.port());
            return Ok(Self {
                ip: address.ip(),
                port,
            });
        }
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        let ip = bare.unwrap_or(text).parse().map_err(|_| NoAddress)?;
        Ok(Self { ip, port: None })
    }
}

impl fmt::Display for AddressFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}", SocketAddr::new(self.ip, port)),
            None => write!(f, "{}", self.ip),
        }
    }
}

/// The texts that queries and JSON have.
macro_rules! as_text {
    ($($name:ident, $error:ident;)+) => { $(
        impl TryFrom<String> for $name {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, $error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(filter: $name) -> Self {
                filter.to_string()
            }
        }
    )+ };
}

as_text! {
    ServiceFilter, NoService;
    AddressFilter, NoAddress;
}

/// Percent-encodes what a query's value cannot hold (RFC 3986 section 3.4; `&`, `+`
/// and `=` mean something in it).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/[]".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
