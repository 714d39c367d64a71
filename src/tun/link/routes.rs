//! Routes as far as the TUN is concerned, and which of them are in its way.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

/// RT_TABLE_MAIN (include/uapi/linux/rtnetlink.h).
pub(super) const MAIN_TABLE: u32 = 254;

/// A route of the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// Where it applies; the default route is /0.
    pub(super) prefix: IpNet,
    /// What it does.
    pub(super) kind: RouteType,
    /// Its device, or that of its first next hop.
    pub(super) device: Option<u32>,
    /// The routing table it is in.
    pub(super) table: u32,
}

impl Route {
    /// `None` for a message that is no IPv4 or IPv6 route.
    pub(super) fn from_message(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let mut destination = None;
        let mut device = None;
        let mut table = u32::from(header.table);
        for attribute in &message.attributes {
            if let RouteAttribute::Destination(address) = attribute {
                destination = Some(ip_address(address)?);
            } else if let RouteAttribute::Oif(index) = attribute {
                device = Some(*index);
            } else if let RouteAttribute::MultiPath(hops) = attribute {
                device = hops.first().map(|hop| hop.interface_index);
            } else if let RouteAttribute::Table(number) = attribute {
                // Tables beyond 255 do not fit into the header.
                table = *number;
            }
        }
        let prefix_len = header.destination_prefix_length;
        let prefix = match destination {
            Some(address) => IpNet::new(address, prefix_len).ok()?,
            None if header.address_family == AddressFamily::Inet => IpNet::V4(Ipv4Net::default()),
            None if header.address_family == AddressFamily::Inet6 => IpNet::V6(Ipv6Net::default()),
            None => return None,
        };
        Some(Self {
            prefix,
            kind: header.kind,
            device,
            table,
        })
    }

    /// The kernel keeps the packet on the node.
    pub(super) fn is_local(&self) -> bool {
        matches!(
            self.kind,
            RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast
        )
    }

    /// The word that `ip route` puts before a route that leads to no device.
    pub(super) fn kind_name(&self) -> Option<&'static str> {
        // The type has a member per kind and one for any number, hence `if`.
        if self.kind == RouteType::BlackHole {
            Some("blackhole")
        } else if self.kind == RouteType::Unreachable {
            Some("unreachable")
        } else if self.kind == RouteType::Prohibit {
            Some("prohibit")
        } else if self.kind == RouteType::Throw {
            Some("throw")
        } else {
            None
        }
    }
}

/// The route in the main table that would take traffic away from `wanted` once
/// that leads to the device `ours`: one for the same prefix or for a part of it.
///
/// The kernel's local table is not looked at: it comes first in any case, and
/// rightly so.
pub(super) fn find_conflict(existing: &[Route], wanted: IpNet, ours: u32) -> Option<&Route> {
    existing.iter().find(|route| {
        route.table == MAIN_TABLE
            && !route.is_local()
            && route.device != Some(ours)
            && wanted.contains(&route.prefix)
    })
}

/// An address of the prefix, to be looked up: the first after the prefix's own,
/// which on IPv6 is the routers' anycast address.
pub(super) fn probe(prefix: IpNet) -> IpAddr {
    match prefix {
        IpNet::V4(net) if net.prefix_len() < 32 => {
            IpAddr::V4((u32::from(net.network()) | 1).into())
        }
        IpNet::V6(net) if net.prefix_len() < 128 => {
            IpAddr::V6((u128::from(net.network()) | 1).into())
        }
        IpNet::V4(_) | IpNet::V6(_) => prefix.addr(),
    }
}

fn ip_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        RouteAddress::Mpls(_) | RouteAddress::Other(_) | _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: u32 = 7;

    fn route(prefix: &str, device: Option<u32>) -> Route {
        let prefix = prefix.parse().unwrap();
        Route {
            prefix,
            kind: RouteType::Unicast,
            device,
            table: MAIN_TABLE,
        }
    }

    fn conflicts(route: &Route, wanted: &str) -> bool {
        find_conflict(std::slice::from_ref(route), wanted.parse().unwrap(), OURS).is_some()
    }

    #[test]
    fn the_same_prefix_or_a_part_of_it_is_in_the_way() {
        assert!(conflicts(&route("10.0.0.0/16", Some(2)), "10.0.0.0/16"));
        assert!(conflicts(&route("10.0.5.0/24", Some(2)), "10.0.0.0/16"));
        assert!(conflicts(&route("fd00::10/128", Some(2)), "fd00::/112"));
        assert!(conflicts(
            &Route {
                kind: RouteType::BlackHole,
                ..route("10.0.5.0/24", None)
            },
            "10.0.0.0/16"
        ));
        // Next hops of several devices.
        assert!(conflicts(&route("10.0.5.0/24", None), "10.0.0.0/16"));
    }

    #[test]
    fn what_is_wider_elsewhere_or_ours_is_not() {
        assert!(!conflicts(&route("0.0.0.0/0", Some(2)), "10.0.0.0/16"));
        assert!(!conflicts(&route("10.0.0.0/8", Some(2)), "10.0.0.0/16"));
        assert!(!conflicts(&route("10.1.0.0/16", Some(2)), "10.0.0.0/16"));
        assert!(!conflicts(&route("::/0", Some(2)), "10.0.0.0/16"));
        assert!(!conflicts(&route("10.0.0.0/16", Some(OURS)), "10.0.0.0/16"));
        assert!(!conflicts(
            &Route {
                table: 255,
                ..route("10.0.0.1/32", Some(2))
            },
            "10.0.0.0/16"
        ));
        assert!(!conflicts(
            &Route {
                kind: RouteType::Local,
                ..route("10.0.0.1/32", Some(2))
            },
            "10.0.0.0/16"
        ));
    }

    #[test]
    fn a_probe_lies_in_its_prefix_and_is_not_the_network_itself() {
        for (prefix, address) in [
            ("10.0.0.0/16", "10.0.0.1"),
            ("10.0.0.3/32", "10.0.0.3"),
            ("10.0.0.2/31", "10.0.0.3"),
            ("fd00::/108", "fd00::1"),
            ("fd00::5/128", "fd00::5"),
        ] {
            let prefix: IpNet = prefix.parse().unwrap();
            assert_eq!(probe(prefix).to_string(), address);
            assert!(prefix.contains(&probe(prefix)));
        }
    }
}
