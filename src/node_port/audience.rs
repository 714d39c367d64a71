//! Who may connect through a listener.
//!
//! Under policy Local without an endpoint on this node, this node and its pods are
//! carried to endpoints elsewhere, and clients from outside get no answer at all, so
//! that they, or the load balancer before them, try another node. A listener would
//! answer everybody: the kernel completes the handshake before we see who it is. The
//! same goes for those in none of a load balancer's source ranges. So such a listener
//! has a socket filter (SO_ATTACH_FILTER, socket(7)), which the kernel asks before it
//! takes a SYN, and which lets in the networks of this node, or those ranges, alone. It
//! is part of every kernel with sockets; some refuse it without CAP_NET_ADMIN (EPERM,
//! seen with 6.18), and then whoever is not meant is reset instead.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use socket2::{SockFilter, Socket};

/// Loads four bytes of the packet.
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets from here on count from the network header (SKF_NET_OFF, linux/filter.h).
const NETWORK_HEADER: u32 = 0xfff0_0000;

/// Where the source address is (RFC 791 section 3.1, RFC 8200 section 3).
const SOURCE_V4: u32 = 12;
const SOURCE_V6: u32 = 8;

/// Lets in connections from these networks of the family alone, or from everywhere.
/// Those that are open stay.
///
/// # Errors
///
/// As setsockopt(2): ENOMEM where `net.core.optmem_max` is too small for so many.
pub(super) fn restrict(socket: &Socket, to: Option<&[IpNet]>, v4: bool) -> io::Result<()> {
    match to {
        Some(networks) => socket.attach_filter(&program(networks, v4)),
        None => match socket.detach_filter() {
            // There was none.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result,
        },
    }
}

/// For each network: load a word, mask it, compare it; at the first difference go on
/// to the next network, behind the last word take the packet.
fn program(networks: &[IpNet], v4: bool) -> Vec<SockFilter> {
    let mut program = Vec::new();
    let of_family = networks.iter().filter(|net| net.addr().is_ipv4() == v4);
    for network in of_family {
        let (words, first) = words(network);
        let mut rest: u8 = words
            .iter()
            .map(|word| if word.1 == u32::MAX { 2 } else { 3 })
            .sum();
        for (offset, (value, mask)) in (0..).step_by(4).zip(words) {
            let at = NETWORK_HEADER + first + offset;
            program.push(SockFilter::new(LOAD, 0, 0, at));
            if mask == u32::MAX {
                rest -= 2;
            } else {
                program.push(SockFilter::new(AND, 0, 0, mask));
                rest -= 3;
            }
            // Over what is left of this network, and over its return.
            program.push(SockFilter::new(JUMP_IF_EQUAL, 0, rest + 1, value));
        }
        program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    }
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program
}

/// The words of a network that its prefix reaches, each with its mask, and where the
/// first of them is in a packet.
fn words(network: &IpNet) -> (Vec<(u32, u32)>, u32) {
    let (bytes, first) = match network.network() {
        IpAddr::V4(ip) => (ip.octets().to_vec(), SOURCE_V4),
        IpAddr::V6(ip) => (ip.octets().to_vec(), SOURCE_V6),
    };
    let mut left = u32::from(network.prefix_len());
    let mut words = Vec::new();
    for word in bytes.as_chunks::<4>().0 {
        if left == 0 {
            break;
        }
        let bits = left.min(32);
        left -= bits;
        words.push((u32::from_be_bytes(*word), u32::MAX << (32 - bits)));
    }
    (words, first)
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    use socket2::SockRef;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn connects(from: &str, to: SocketAddr) -> bool {
        let from: SocketAddr = from.parse().unwrap();
        let socket = Socket::new(
            socket2::Domain::for_address(from),
            socket2::Type::STREAM,
            None,
        );
        let socket = socket.unwrap();
        socket.bind(&from.into()).unwrap();
        let limit = Duration::from_millis(200);
        socket.connect_timeout(&to.into(), limit).is_ok()
    }

    #[test]
    fn the_kernel_lets_in_the_networks_and_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let socket = SockRef::from(&listener);
        let networks = nets(&["10.0.0.0/8", "127.9.0.0/16", "127.0.0.7/32", "::1/128"]);
        restrict(&socket, Some(&networks), true).unwrap();
        for (from, expected) in [
            ("127.9.0.1:0", true),
            ("127.9.200.1:0", true),
            ("127.0.0.7:0", true),
            ("127.0.0.8:0", false),
            ("127.8.0.1:0", false),
        ] {
            assert_eq!(connects(from, to), expected, "{from}");
        }
        restrict(&socket, Some(&nets(&["0.0.0.0/0"])), true).unwrap();
        assert!(connects("127.0.0.8:0", to));
        restrict(&socket, Some(&[]), true).unwrap();
        assert!(!connects("127.0.0.7:0", to));
        restrict(&socket, None, true).unwrap();
        restrict(&socket, None, true).unwrap();
        assert!(TcpStream::connect(to).is_ok());
    }

    #[test]
    fn ipv6_networks_of_every_length() {
        let Ok(listener) = TcpListener::bind("[::1]:0") else {
            // A machine without IPv6; the lab's trials have it.
            return assert!(!std::path::Path::new("/proc/net/if_inet6").exists());
        };
        let to = listener.local_addr().unwrap();
        let socket = SockRef::from(&listener);
        for (network, expected) in [
            ("::1/128", true),
            ("::2/128", false),
            ("::/0", true),
            ("::/96", true),
            ("::/100", true),
            ("fd00::/8", false),
            ("0:0:0:1::/64", false),
            ("0:0:0:1::/47", true),
        ] {
            restrict(&socket, Some(&nets(&["fd00:1::/33", network])), false).unwrap();
            assert_eq!(connects("[::1]:0", to), expected, "{network}");
        }
    }
}
