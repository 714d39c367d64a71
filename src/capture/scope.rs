//! What a packet can have to do with the wanted service ports, before it is known which
//! flow it belongs to.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::known::{Pair, Side};
use crate::packet::{TcpFlags, protocol};

/// Extension headers that can stand before TCP and UDP (RFC 8200 section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

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
    /// Their real servers, each with the names of all the service ports that have it.
    pub real_servers: HashMap<(u8, SocketAddr), HashSet<String>>,
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
    /// Whether it is the answer to that.
    pub(super) accepts: bool,
}

impl Ends {
    /// Of an IP packet with TCP or UDP in it, of which the end may be cut off. Of a
    /// fragmented datagram only the first fragment has ports.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let (source, destination, protocol, at) = header(bytes)?;
        if !matches!(protocol, protocol::TCP | protocol::UDP) {
            return None;
        }
        let payload = bytes.get(at..)?;
        let [a, b, c, d] = *payload.first_chunk::<4>()?;
        // RFC 9293 3.1: the control bits are the 14th byte.
        let flags = TcpFlags(payload.get(13).copied().unwrap_or(0));
        let syn = protocol == protocol::TCP && flags.syn();
        let ack = flags.contains(TcpFlags::ACK);
        Some(Self {
            protocol,
            from: SocketAddr::new(source, u16::from_be_bytes([a, b])),
            to: SocketAddr::new(destination, u16::from_be_bytes([c, d])),
            opens: syn && !ack,
            accepts: syn && ack,
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
            let is_real = self
                .real_servers
                .contains_key(&(pair.protocol, pair.server));
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

    /// Whether the real server in a pair is one of this service port.
    pub(super) fn is_real_server_of(&self, pair: &Pair, service: &str) -> bool {
        let services = self.real_servers.get(&(pair.protocol, pair.server));
        services.is_some_and(|services| services.contains(service))
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        self.interfaces.addresses.contains(&address)
    }
}

/// Source, destination, protocol, and where its header begins; none behind the first
/// fragment. Unlike [`IpPacket`](crate::packet::IpPacket) it does not ask for the whole
/// packet.
fn header(bytes: &[u8]) -> Option<(IpAddr, IpAddr, u8, usize)> {
    match bytes.first()? >> 4 {
        4 => {
            let header = bytes.first_chunk::<20>()?;
            // The lower 13 bits are the fragment's offset (RFC 791 section 3.1).
            let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
            let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
            let source = Ipv4Addr::new(s0, s1, s2, s3).into();
            let destination = Ipv4Addr::new(d0, d1, d2, d3).into();
            let length = usize::from(header[0] & 0x0f) * 4;
            (offset == 0).then_some((source, destination, header[9], length))
        }
        6 => {
            let header = bytes.first_chunk::<40>()?;
            let address = |at: usize| {
                let octets = header.get(at..)?.first_chunk::<16>()?;
                Some(IpAddr::from(Ipv6Addr::from(*octets)))
            };
            let (source, destination) = (address(8)?, address(24)?);
            let (mut next, mut at) = (header[6], header.len());
            // RFC 8200 section 4: a header says what follows it, and its length.
            loop {
                let extension = bytes.get(at..)?;
                let length = match next {
                    HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                        8 + usize::from(*extension.get(1)?) * 8
                    }
                    FRAGMENT => {
                        let [_, _, high, low] = *extension.first_chunk::<4>()?;
                        if u16::from_be_bytes([high, low]) >> 3 > 0 {
                            return None;
                        }
                        8
                    }
                    _ => return Some((source, destination, next, at)),
                };
                next = *extension.first()?;
                at += length;
            }
        }
        _ => None,
    }
}
