//! Rules of kube-proxy in nf_tables: the table of its nftables mode, and the chains of
//! its iptables mode where iptables is the one that writes nf_tables.

use std::fs;
use std::io;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::netlink::{attribute, dump, text};

/// NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE and NFT_MSG_GETCHAIN,
/// linux/netfilter/nfnetlink.h and nf_tables.h.
const SUBSYSTEM: u16 = 10;
const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;

/// NFTA_TABLE_NAME, NFTA_CHAIN_TABLE and NFTA_CHAIN_NAME, nf_tables.h.
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;

/// `struct nfgenmsg`, nfnetlink.h.
const HEADER_LEN: usize = 4;

/// The table of kube-proxy's nftables mode (kubernetes `pkg/proxy/nftables/proxier.go`).
const KUBE_PROXY: &str = "kube-proxy";

/// The chain through which its iptables mode sends everything (kubernetes
/// `pkg/proxy/iptables/proxier.go`).
const KUBE_SERVICES: &str = "KUBE-SERVICES";

/// What kube-proxy has in netfilter, as far as can be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Tables of the nftables mode, as nft names them: `ip kube-proxy`.
    pub nftables: Vec<String>,
    /// Tables with chains of the iptables mode: `ip nat`.
    pub iptables: Vec<String>,
    /// Tables of the old iptables, whose rules cannot be read by netlink.
    pub legacy_tables: Vec<String>,
}

impl Rules {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// EPERM without CAP_NET_ADMIN. A kernel without nf_tables has no rules there, which
    /// is no error.
    pub fn read() -> io::Result<Self> {
        let mut rules = Self {
            legacy_tables: legacy_tables(),
            ..Self::default()
        };
        for message in ask(GET_TABLE)? {
            let (family, attributes) = split(&message);
            let name = attribute(attributes, TABLE_NAME).map(text);
            if name.as_deref() == Some(KUBE_PROXY) {
                rules.nftables.push(format!("{family} {KUBE_PROXY}"));
            }
        }
        for message in ask(GET_CHAIN)? {
            let (family, attributes) = split(&message);
            let name = attribute(attributes, CHAIN_NAME).map(text);
            if name.as_deref() == Some(KUBE_SERVICES)
                && let Some(table) = attribute(attributes, CHAIN_TABLE).map(text)
                && table == "nat"
            {
                rules.iptables.push(format!("{family} {table}"));
            }
        }
        rules.nftables.sort_unstable();
        rules.iptables.sort_unstable();
        Ok(rules)
    }
}

/// A kernel without netfilter's netlink, or without nf_tables in it, has nothing.
fn ask(what: u16) -> io::Result<Vec<Vec<u8>>> {
    // Every family, NFNETLINK_V0.
    match dump(NETLINK_NETFILTER, SUBSYSTEM << 8 | what, &[0; HEADER_LEN]) {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP)
            ) =>
        {
            Ok(Vec::new())
        }
        answer => answer,
    }
}

/// Family, in nft's words, and attributes.
fn split(message: &[u8]) -> (&'static str, &[u8]) {
    // NFPROTO_*, linux/netfilter.h.
    let family = match message.first() {
        Some(1) => "inet",
        Some(2) => "ip",
        Some(10) => "ip6",
        Some(_) | None => "other",
    };
    (family, message.get(HEADER_LEN..).unwrap_or_default())
}

/// The nat tables of the old iptables that are in use.
fn legacy_tables() -> Vec<String> {
    let files = [("ip", "ip_tables_names"), ("ip6", "ip6_tables_names")];
    let has_nat = |file: &str| {
        fs::read_to_string(format!("/proc/thread-self/net/{file}"))
            .is_ok_and(|names| names.lines().any(|name| name == "nat"))
    };
    let in_use = files.iter().filter(|(_, file)| has_nat(file));
    in_use.map(|(family, _)| format!("{family} nat")).collect()
}
