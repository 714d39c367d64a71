//! What a packet can have to do with the wanted service ports, before it is known which
//! flow it belongs to.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::known::{Pair, Side};
use crate::packet::{IpPacket, TcpFlags, protocol};

/// The interfaces of the node, as far as they matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Index of the proxy's TUN device, where the clients' side passes.
    pub tun: Option<u32>,
    /// Members of bridges and bonds: what passes them passes their master too.
    pub members: HashSet<u32>,
    /// Names, by index.
    pub names: HashMap<u32, String>,
    /// Addresses of all but the TUN device.
    pub addresses: HashSet<IpAddr>,
}

/// What packets are looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// The wanted virtual servers, by protocol number and address, with the names of their
    /// service ports.
    pub virtual_servers: HashMap<(u8, SocketAddr), String>,
    /// Their real servers.
    pub real_servers: HashSet<(u8, SocketAddr)>,
    /// Where packets pass.
    pub interfaces: Interfaces,
}

/// Who sent a packet to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    protocol: u8,
    from: SocketAddr,
    to: SocketAddr,
    /// Whether it is the first of a TCP connection.
    pub(super) opens: bool,
}

impl Ends {
    /// Of an IP packet with TCP or UDP in it. Of a fragmented datagram only the first
    /// fragment has ports.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let packet = IpPacket::parse(bytes).ok()?;
        if !matches!(packet.protocol, protocol::TCP | protocol::UDP)
            || packet.fragment.is_some_and(|fragment| fragment.offset > 0)
        {
            return None;
        }
        let payload = packet.payload();
        let [a, b, c, d] = *payload.first_chunk::<4>()?;
        // RFC 9293 3.1: the control bits are the 14th byte.
        let flags = TcpFlags(payload.get(13).copied().unwrap_or(0));
        Some(Self {
            protocol: packet.protocol,
            from: SocketAddr::new(packet.source, u16::from_be_bytes([a, b])),
            to: SocketAddr::new(packet.destination, u16::from_be_bytes([c, d])),
            opens: packet.protocol == protocol::TCP
                && flags.syn()
                && !flags.contains(TcpFlags::ACK),
        })
    }

    /// The pair, whichever of the two opened it.
    pub(super) fn pairs(&self) -> [Pair; 2] {
        let pair = |opener, server| Pair {
            protocol: self.protocol,
            opener,
            server,
        };
        [pair(self.from, self.to), pair(self.to, self.from)]
    }
}

impl Scope {
    /// Whether packets of this side are recorded where this one passed: each of them once,
    /// if it can be.
    pub(super) fn is_its_place(&self, interface: u32, side: Side, pair: &Pair) -> bool {
        let on_tun = self.interfaces.tun == Some(interface);
        match side {
            Side::Client if on_tun => true,
            // A virtual server at an address of the node: its clients do not come
            // through the TUN.
            Side::Client => {
                !self.interfaces.members.contains(&interface) && self.is_ours(pair.server.ip())
            }
            Side::Server => !on_tun && !self.interfaces.members.contains(&interface),
        }
    }

    /// The side of a wanted service port that a packet passed on, by its addresses alone.
    pub(super) fn guess(&self, interface: u32, ends: &Ends) -> Option<(Side, Pair)> {
        ends.pairs().into_iter().find_map(|pair| {
            let is_real = self.real_servers.contains(&(pair.protocol, pair.server));
            let side = if self.service(&pair).is_some() {
                Side::Client
            } else if is_real && self.is_ours(pair.opener.ip()) {
                Side::Server
            } else {
                return None;
            };
            self.is_its_place(interface, side, &pair)
                .then_some((side, pair))
        })
    }

    /// The service port of the virtual server in a pair.
    pub(super) fn service(&self, pair: &Pair) -> Option<&str> {
        let at = |address| self.virtual_servers.get(&(pair.protocol, address));
        // A node port is told as one virtual server, at no address in particular.
        let anywhere = if pair.server.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let node_port = || {
            let address = SocketAddr::new(anywhere, pair.server.port());
            at(address).filter(|_| self.is_ours(pair.server.ip()))
        };
        at(pair.server).or_else(node_port).map(String::as_str)
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        self.interfaces.addresses.contains(&address)
    }
}
