//! IP addresses and CIDRs as objects spell them.
//!
//! Go's parser, and with it kube-proxy, read `172.30.0.041` as decimal for
//! years; objects written then still exist. The parser of the standard library
//! refuses them, so this one reads what `netutils.ParseIPSloppy` reads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The name as the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Reads an address; leading zeros in IPv4 octets are decimal. An IPv4-mapped
/// IPv6 address is IPv4, as it is for Go.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return parse_v4(text).map(IpAddr::V4);
    }
    let ip: Ipv6Addr = match text.rsplit_once(':') {
        Some((head, tail)) if tail.contains('.') => {
            format!("{head}:{}", parse_v4(tail)?).parse().ok()?
        }
        _ => text.parse().ok()?,
    };
    Some(IpAddr::V6(ip).to_canonical())
}

/// Reads a CIDR after trimming white space, as kube-proxy does for
/// loadBalancerSourceRanges; host bits are cleared.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (ip, prefix) = text.trim().split_once('/')?;
    if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let net = IpNet::new(parse_ip(ip)?, prefix.parse().ok()?).ok()?;
    Some(net.trunc())
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() {
            0
        } else {
            digits.parse().ok()?
        };
    }
    parts.next().is_none().then(|| octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal() {
        // The addresses of kube-proxy's TestBadIPs.
        for (text, plain) in [
            ("172.30.0.041", "172.30.0.41"),
            ("1.2.3.004", "1.2.3.4"),
            ("192.168.099.022", "192.168.99.22"),
            ("10.180.00.001", "10.180.0.1"),
            ("0000010.000.0.00255", "10.0.0.255"),
            ("fd00::0a", "fd00::a"),
            ("::ffff:10.0.0.010", "10.0.0.10"),
            ("64:ff9b::010.0.0.1", "64:ff9b::a00:1"),
        ] {
            let expected: IpAddr = plain.parse().unwrap();
            assert_eq!(parse_ip(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "10.0.0",
            "10.0.0.0.1",
            "10.0.0.256",
            "10.0.0.-1",
            "10.0.0.+1",
            "10.0..1",
            " 10.0.0.1",
            "0x0a.0.0.1",
            "fd00::1%eth0",
            "None",
            "fd00:::1",
            "example.org",
            "99999999999999999999.0.0.1",
        ] {
            assert_eq!(parse_ip(text), None, "{text}");
        }
    }

    #[test]
    fn cidrs_are_trimmed_and_truncated() {
        // The leading space stands in kube-proxy's TestLoadBalancer.
        assert_eq!(
            parse_cidr(" 203.0.113.000/25").unwrap().to_string(),
            "203.0.113.0/25"
        );
        assert_eq!(parse_cidr("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(parse_cidr("fd00::1/64").unwrap().to_string(), "fd00::/64");
        for text in ["10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/+8", "/8"] {
            assert_eq!(parse_cidr(text), None, "{text}");
        }
    }
}
