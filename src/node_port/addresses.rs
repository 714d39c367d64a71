//! Which of the node's addresses node ports are opened on.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::IpNet;

/// What `--nodeport-addresses` asks for, one item at a time. Nothing asked for is
/// every address of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddress {
    /// The node's addresses within a network.
    Cidr(IpNet),
    /// The node's own address of each family: what its Node object names, and before
    /// that is known, what the kernel gives as source of traffic that leaves.
    Primary,
    /// 127.0.0.1 and ::1.
    Localhost,
}

impl fmt::Display for NodePortAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cidr(net) => net.fmt(f),
            Self::Primary => f.write_str("primary"),
            Self::Localhost => f.write_str("localhost"),
        }
    }
}

/// The node's addresses as they are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Every address of an interface that a socket can be bound to without more ado:
    /// not those that are link-local in IPv6, which need to be told the interface.
    pub all: BTreeSet<IpAddr>,
    /// The node's own address, at most one of each family.
    pub primary: Vec<IpAddr>,
}

impl NodeAddresses {
    /// Reads them. `named` are the addresses that the Node object names, in its
    /// order; `except` those of our own TUN.
    pub fn read(named: &[IpAddr], except: &[IpAddr]) -> Self {
        let all: BTreeSet<IpAddr> = crate::dataplane::interface_addresses(None)
            .into_iter()
            .filter(|address| can_be_bound(*address) && !except.contains(address))
            .collect();
        let primary = [true, false]
            .into_iter()
            .filter_map(|v4| {
                let mut named = named.iter().filter(|address| address.is_ipv4() == v4);
                named
                    .find(|address| all.contains(address))
                    .copied()
                    .or_else(|| leaving(v4).filter(|address| all.contains(address)))
            })
            .collect();
        Self { all, primary }
    }

    /// The addresses that `wanted` asks for, in order.
    ///
    /// As with kube-proxy (`NewNodePortAddresses`, kubernetes
    /// `pkg/proxy/util/nodeport_addresses.go`), a family of which no network is named
    /// is not restricted, unless a keyword is given.
    pub fn chosen(&self, wanted: &[NodePortAddress]) -> BTreeSet<IpAddr> {
        let is_chosen = |address: &IpAddr| {
            let mut restricted = false;
            for item in wanted {
                match item {
                    NodePortAddress::Cidr(net) => {
                        if net.addr().is_ipv4() == address.is_ipv4() {
                            restricted = true;
                            if net.contains(address) {
                                return true;
                            }
                        }
                    }
                    NodePortAddress::Primary => {
                        restricted = true;
                        if self.primary.contains(address) {
                            return true;
                        }
                    }
                    NodePortAddress::Localhost => {
                        restricted = true;
                        if *address == Ipv4Addr::LOCALHOST || *address == Ipv6Addr::LOCALHOST {
                            return true;
                        }
                    }
                }
            }
            !restricted
        };
        self.all.iter().copied().filter(is_chosen).collect()
    }
}

/// Whether nothing in `wanted` leaves out an address of that family.
pub(super) fn is_unrestricted(wanted: &[NodePortAddress], v4: bool) -> bool {
    let mut none = true;
    for item in wanted {
        match item {
            NodePortAddress::Cidr(net) if net.addr().is_ipv4() == v4 => {
                if net.prefix_len() == 0 {
                    return true;
                }
                none = false;
            }
            NodePortAddress::Cidr(_) => {}
            NodePortAddress::Primary | NodePortAddress::Localhost => none = false,
        }
    }
    none
}

fn can_be_bound(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_unspecified(),
        IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_unspecified(),
    }
}

/// The source address of what leaves the node: connecting a UDP socket to an address
/// of the documentation's (RFC 5737, RFC 3849) asks the routes and sends nothing.
fn leaving(v4: bool) -> Option<IpAddr> {
    let (any, away): (IpAddr, IpAddr) = if v4 {
        let away = Ipv4Addr::new(192, 0, 2, 1);
        (Ipv4Addr::UNSPECIFIED.into(), away.into())
    } else {
        let away = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        (Ipv6Addr::UNSPECIFIED.into(), away.into())
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    // Port 9, discard, since 0 is no port to connect to.
    socket.connect(SocketAddr::new(away, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "192.168.0.2";
    const OTHER: &str = "192.168.1.2";
    const NODE6: &str = "2001:db8::1";
    const OTHER6: &str = "2001:db8:1::2";

    fn node() -> NodeAddresses {
        let all = [NODE, OTHER, NODE6, OTHER6, "127.0.0.1", "::1"];
        NodeAddresses {
            all: all.iter().map(|text| text.parse().unwrap()).collect(),
            primary: vec![NODE.parse().unwrap(), NODE6.parse().unwrap()],
        }
    }

    fn wanted(items: &[&str]) -> Vec<NodePortAddress> {
        let parse = |text: &&str| match *text {
            "primary" => NodePortAddress::Primary,
            "localhost" => NodePortAddress::Localhost,
            net => NodePortAddress::Cidr(net.parse().unwrap()),
        };
        items.iter().map(parse).collect()
    }

    fn check(items: &[&str], expected: &[&str]) {
        let chosen = node().chosen(&wanted(items));
        let expected: BTreeSet<IpAddr> = expected.iter().map(|t| t.parse().unwrap()).collect();
        assert_eq!(chosen, expected, "{items:?}");
    }

    /// The seven cases of TestNodePorts (kubernetes `pkg/proxy/iptables`), by meaning:
    /// which of the node's address, its alternative and loopback accept. What their
    /// flag for localhost does is here said with networks that leave loopback out.
    #[test]
    fn as_kube_proxy_chooses() {
        // IPv4, localhost in: nothing asked for.
        let all = [NODE, OTHER, NODE6, OTHER6, "127.0.0.1", "::1"];
        check(&[], &all);
        // IPv4, localhost out.
        check(
            &["128.0.0.0/1", "::/0"],
            &[NODE, OTHER, NODE6, OTHER6, "::1"],
        );
        // IPv4, loopback named beside one network.
        check(
            &["192.168.0.0/24", "127.0.0.1/32"],
            &[NODE, "127.0.0.1", NODE6, OTHER6, "::1"],
        );
        // IPv4, several networks, of the other family too.
        check(
            &["192.168.0.0/24", "192.168.1.0/24", "2001:db8::/64"],
            &[NODE, OTHER, NODE6],
        );
        // IPv6, localhost in.
        check(&["0.0.0.0/0"], &all);
        // IPv6, localhost out.
        check(
            &["0.0.0.0/0", "2000::/3"],
            &[NODE, OTHER, "127.0.0.1", NODE6, OTHER6],
        );
        // IPv6, several networks.
        check(
            &["192.168.0.0/24", "2001:db8::/64", "2001:db8:1::/64"],
            &[NODE, NODE6, OTHER6],
        );
    }

    #[test]
    fn keywords() {
        check(&["primary"], &[NODE, NODE6]);
        check(&["localhost"], &["127.0.0.1", "::1"]);
        check(
            &["primary", "localhost"],
            &[NODE, NODE6, "127.0.0.1", "::1"],
        );
        check(&["primary", "192.168.1.0/24"], &[NODE, NODE6, OTHER]);
        check(&["10.0.0.0/8", "fd00::/8"], &[]);
    }

    #[test]
    fn this_machine_has_loopback_and_nothing_link_local() {
        let read = NodeAddresses::read(&[], &[]);
        assert!(read.all.contains(&IpAddr::from(Ipv4Addr::LOCALHOST)));
        assert!(read.all.iter().all(|address| can_be_bound(*address)));
        let except = [IpAddr::from(Ipv4Addr::LOCALHOST)];
        let read = NodeAddresses::read(&except, &except);
        assert!(!read.all.contains(&except[0]) && !read.primary.contains(&except[0]));
    }
}
