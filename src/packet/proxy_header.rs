//! The PROXY protocol's header: who the client is, said to the real server before
//! anything else.
//!
//! haproxy's doc/proxy-protocol.txt, sections 2.1 (text) and 2.2 (binary), for TCP
//! over one family: both addresses are IPv4, or both IPv6.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

/// Longest header: 104 bytes of text over IPv6 (section 2.1), 52 in binary.
pub const PROXY_HEADER_MAX: usize = 104;

/// What a binary header begins with (section 2.2).
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, command PROXY.
const VERSION_COMMAND: u8 = 0x21;

/// Address family and transport: TCP over IPv4, TCP over IPv6.
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// Version 1, a line of text. `None` if the two addresses are of different families.
pub fn proxy_header_v1(client: SocketAddr, destination: SocketAddr) -> Option<Vec<u8>> {
    let family = match (client.is_ipv4(), destination.is_ipv4()) {
        (true, true) => "TCP4",
        (false, false) => "TCP6",
        (true, false) | (false, true) => return None,
    };
    let mut line = String::with_capacity(PROXY_HEADER_MAX);
    // A String takes everything.
    let _ = write!(
        line,
        "PROXY {family} {} {} {} {}\r\n",
        client.ip(),
        destination.ip(),
        client.port(),
        destination.port()
    );
    Some(line.into_bytes())
}

/// Version 2, binary. `None` if the two addresses are of different families.
pub fn proxy_header_v2(client: SocketAddr, destination: SocketAddr) -> Option<Vec<u8>> {
    let mut addresses = Vec::with_capacity(36);
    let family = match (client.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            addresses.extend(from.octets());
            addresses.extend(to.octets());
            TCP_OVER_IPV4
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            addresses.extend(from.octets());
            addresses.extend(to.octets());
            TCP_OVER_IPV6
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    addresses.extend(client.port().to_be_bytes());
    addresses.extend(destination.port().to_be_bytes());
    let mut header = Vec::with_capacity(SIGNATURE.len() + 4 + addresses.len());
    header.extend(SIGNATURE);
    header.extend([VERSION_COMMAND, family]);
    // At most 36.
    header.extend((addresses.len() as u16).to_be_bytes());
    header.extend(addresses);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn text_as_the_specification_s_example() {
        let line = proxy_header_v1(at("192.168.0.1:56324"), at("192.168.0.11:443")).unwrap();
        assert_eq!(line, b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n");
    }

    #[test]
    fn text_over_ipv6_writes_addresses_as_rfc_5952() {
        let line = proxy_header_v1(at("[2001:db8::1]:1"), at("[fd00:10:0:0::3]:65535")).unwrap();
        assert_eq!(line, b"PROXY TCP6 2001:db8::1 fd00:10::3 1 65535\r\n");
        let longest = at("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535");
        let line = proxy_header_v1(longest, longest).unwrap();
        assert_eq!(line.len(), PROXY_HEADER_MAX);
    }

    #[test]
    fn binary_over_ipv4() {
        let header = proxy_header_v2(at("192.168.0.1:56324"), at("192.168.0.11:443")).unwrap();
        assert_eq!(
            header,
            [
                0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54,
                0x0a, // signature
                0x21, 0x11, 0x00, 0x0c, // version and command, family, length
                192, 168, 0, 1, 192, 168, 0, 11, // addresses
                0xdc, 0x04, 0x01, 0xbb, // ports
            ]
        );
    }

    #[test]
    fn binary_over_ipv6() {
        let header = proxy_header_v2(at("[2001:db8::1]:56324"), at("[fd00:10::3]:443")).unwrap();
        let mut expected = SIGNATURE.to_vec();
        expected.extend([0x21, 0x21, 0x00, 0x24]);
        expected.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        expected.extend([0xfd, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
        expected.extend([0xdc, 0x04, 0x01, 0xbb]);
        assert_eq!(header, expected);
        assert_eq!(header.len(), 52);
    }

    #[test]
    fn addresses_of_two_families_make_no_header() {
        let (v4, v6) = (at("192.0.2.1:1"), at("[2001:db8::1]:1"));
        assert_eq!(proxy_header_v1(v4, v6), None);
        assert_eq!(proxy_header_v2(v6, v4), None);
    }
}
