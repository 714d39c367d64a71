//! Enough of a packet to say who sent what to whom, shown as tcpdump shows it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6FragmentHeader, Ipv6Packet, TcpPacket, UdpPacket};

/// An IP packet's addresses and what it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// What it carries.
    pub protocol: Protocol,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Length of the whole packet in bytes, as its header says.
    pub length: usize,
    /// Where in the datagram this fragment lies, in bytes, and whether more
    /// follow; None for a packet that is whole.
    pub fragment: Option<(usize, bool)>,
    /// What follows the transport header.
    pub payload: Vec<u8>,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A TCP segment.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Flags.
        flags: TcpFlags,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number; without meaning unless `flags.ack`.
        acknowledgement: u32,
        /// Window, unscaled.
        window: u16,
    },
    /// A UDP datagram.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// An ICMP or ICMPv6 message.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Something else, or a later fragment of anything: its IP protocol number.
    Other(u8),
}

/// Flags of a TCP segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags {
    /// Opens.
    pub syn: bool,
    /// Closes its half.
    pub fin: bool,
    /// Cuts.
    pub rst: bool,
    /// Wants to be read at once.
    pub psh: bool,
    /// Acknowledges.
    pub ack: bool,
}

impl Packet {
    /// Parses an IP packet; None when it is cut short or is none. Checksums are
    /// not looked at: offloads leave them unfinished.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse_ipv4(bytes),
            6 => Self::parse_ipv6(bytes),
            _ => None,
        }
    }

    /// Source address and port; port 0 where there is none.
    pub fn from(&self) -> SocketAddr {
        SocketAddr::new(self.source, self.ports().0)
    }

    /// Destination address and port; port 0 where there is none.
    pub fn to(&self) -> SocketAddr {
        SocketAddr::new(self.destination, self.ports().1)
    }

    /// Flags of a TCP segment; None for anything else.
    pub fn tcp_flags(&self) -> Option<TcpFlags> {
        match self.protocol {
            Protocol::Tcp { flags, .. } => Some(flags),
            Protocol::Udp { .. } | Protocol::Icmp { .. } | Protocol::Other(_) => None,
        }
    }

    /// Whether it is the first segment of a TCP connection.
    pub fn is_syn(&self) -> bool {
        self.tcp_flags()
            .is_some_and(|flags| flags.syn && !flags.ack)
    }

    /// Whether it is to or from the address.
    pub fn touches(&self, address: IpAddr) -> bool {
        self.source == address || self.destination == address
    }

    fn ports(&self) -> (u16, u16) {
        match self.protocol {
            Protocol::Tcp {
                source,
                destination,
                ..
            }
            | Protocol::Udp {
                source,
                destination,
            } => (source, destination),
            Protocol::Icmp { .. } | Protocol::Other(_) => (0, 0),
        }
    }

    fn parse_ipv4(bytes: &[u8]) -> Option<Self> {
        let ip = Ipv4Packet::new_checked(bytes).ok()?;
        let (offset, more) = (usize::from(ip.frag_offset()), ip.more_frags());
        let fragment = (offset > 0 || more).then_some((offset, more));
        let (protocol, payload) = transport(ip.next_header(), offset, ip.payload());
        Some(Self {
            source: ip.src_addr().into(),
            destination: ip.dst_addr().into(),
            protocol,
            ttl: ip.hop_limit(),
            length: ip.total_len().into(),
            fragment,
            payload,
        })
    }

    fn parse_ipv6(bytes: &[u8]) -> Option<Self> {
        let ip = Ipv6Packet::new_checked(bytes).ok()?;
        let (mut next, mut rest) = (ip.next_header(), ip.payload());
        let mut fragment = None;
        if next == IpProtocol::Ipv6Frag {
            // Next header and a reserved byte (RFC 8200, 4.5), then the rest of
            // the header as smoltcp has it.
            let header = Ipv6FragmentHeader::new_checked(rest.get(2..8)?).ok()?;
            fragment = Some((usize::from(header.frag_offset()) * 8, header.more_frags()));
            next = IpProtocol::from(*rest.first()?);
            rest = rest.get(8..)?;
        }
        let offset = fragment.map_or(0, |(offset, _)| offset);
        let (protocol, payload) = transport(next, offset, rest);
        Some(Self {
            source: ip.src_addr().into(),
            destination: ip.dst_addr().into(),
            protocol,
            ttl: ip.hop_limit(),
            length: ip.total_len(),
            fragment,
            payload,
        })
    }
}

/// The transport header and what follows it. Read without the checks of lengths
/// that a first fragment fails; what is too short is [`Protocol::Other`].
fn transport(next: IpProtocol, offset: usize, bytes: &[u8]) -> (Protocol, Vec<u8>) {
    let other = || (Protocol::Other(next.into()), bytes.to_vec());
    if offset > 0 {
        return other();
    }
    if next == IpProtocol::Tcp {
        let Ok(tcp) = TcpPacket::new_checked(bytes) else {
            return other();
        };
        let protocol = Protocol::Tcp {
            source: tcp.src_port(),
            destination: tcp.dst_port(),
            flags: TcpFlags {
                syn: tcp.syn(),
                fin: tcp.fin(),
                rst: tcp.rst(),
                psh: tcp.psh(),
                ack: tcp.ack(),
            },
            sequence: tcp.seq_number().0.cast_unsigned(),
            acknowledgement: tcp.ack_number().0.cast_unsigned(),
            window: tcp.window_len(),
        };
        (protocol, tcp.payload().to_vec())
    } else if next == IpProtocol::Udp && bytes.len() >= smoltcp::wire::UDP_HEADER_LEN {
        let udp = UdpPacket::new_unchecked(bytes);
        let protocol = Protocol::Udp {
            source: udp.src_port(),
            destination: udp.dst_port(),
        };
        (protocol, bytes[smoltcp::wire::UDP_HEADER_LEN..].to_vec())
    } else if let (IpProtocol::Icmp | IpProtocol::Icmpv6, [kind, code, _, _, rest @ ..]) =
        (next, bytes)
    {
        (
            Protocol::Icmp {
                kind: *kind,
                code: *code,
            },
            rest.to_vec(),
        )
    } else {
        other()
    }
}

/// `IP 10.1.15.0.49036 > 10.1.65.5.443: Flags [S], length 0`
impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ip, echo_request, echo_reply) = if self.source.is_ipv4() {
            ("IP", 8, 0)
        } else {
            ("IP6", 128, 129)
        };
        let (source, destination, length) = (self.source, self.destination, self.payload.len());
        match self.protocol {
            Protocol::Tcp {
                source: from,
                destination: to,
                flags,
                ..
            } => write!(
                f,
                "{ip} {source}.{from} > {destination}.{to}: Flags [{flags}], length {length}"
            ),
            Protocol::Udp {
                source: from,
                destination: to,
            } => {
                write!(
                    f,
                    "{ip} {source}.{from} > {destination}.{to}: UDP, length {length}"
                )
            }
            Protocol::Icmp { kind, code } => {
                write!(f, "{ip} {source} > {destination}: ")?;
                if kind == echo_request {
                    write!(f, "ICMP echo request, length {}", length + 4)
                } else if kind == echo_reply {
                    write!(f, "ICMP echo reply, length {}", length + 4)
                } else {
                    write!(f, "ICMP type {kind} code {code}, length {}", length + 4)
                }
            }
            Protocol::Other(number) => {
                write!(
                    f,
                    "{ip} {source} > {destination}: protocol {number}, length {length}"
                )
            }
        }
    }
}

/// As tcpdump has them: `S`, `S.`, `P.`, `F.`, `R.`, `.`
impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = [
            (self.syn, "S"),
            (self.fin, "F"),
            (self.rst, "R"),
            (self.psh, "P"),
        ];
        for (set, letter) in flags {
            if set {
                f.write_str(letter)?;
            }
        }
        f.write_str(if self.ack { "." } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN from 10.1.15.0:49036 to 10.1.65.5:443.
    const SYN: [u8; 40] = [
        0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 1, 15, 0, 10, 1, 65, 5, //
        0xbf, 0x8c, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0,
    ];

    #[test]
    fn a_segment_reads_as_in_tcpdump() {
        let packet = Packet::parse(&SYN).unwrap();
        assert!(packet.is_syn());
        assert_eq!(packet.from(), "10.1.15.0:49036".parse().unwrap());
        assert_eq!(packet.to(), "10.1.65.5:443".parse().unwrap());
        assert_eq!(
            packet.to_string(),
            "IP 10.1.15.0.49036 > 10.1.65.5.443: Flags [S], length 0"
        );
    }

    #[test]
    fn no_prefix_of_a_packet_panics() {
        for length in 0..SYN.len() {
            assert_eq!(Packet::parse(&SYN[..length]), None);
        }
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let mut bytes = SYN;
        bytes[9] = 17;
        bytes[6..8].copy_from_slice(&[0x20, 0]); // more follow
        let first = Packet::parse(&bytes).unwrap();
        assert_eq!(first.fragment, Some((0, true)));
        assert_eq!(
            first.protocol,
            Protocol::Udp {
                source: 0xbf8c,
                destination: 443
            }
        );
        bytes[6..8].copy_from_slice(&[0, 2]); // 16 bytes in, the last
        let second = Packet::parse(&bytes).unwrap();
        assert_eq!(second.fragment, Some((16, false)));
        assert_eq!(second.protocol, Protocol::Other(17));
    }
}
