//! What the kernel says and does, apart from the code under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use kube_tun_proxy::tun::{Queues, open_queues};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressScope,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::rule::RuleAction;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::namespace::{block_on, ok};

/// An address as the kernel has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) address: IpAddr,
    pub(crate) prefix_len: u8,
    pub(crate) scope: AddressScope,
    pub(crate) deprecated: bool,
    pub(crate) tentative: bool,
}

/// A device that stands for whatever else a node has, up.
pub(crate) fn other_device(name: &str) -> Queues {
    let queues = ok(open_queues(name, 1));
    with(async |handle| {
        let up = LinkUnspec::new_with_index(queues.index).up().build();
        handle.link().set(up).execute().await.unwrap();
    });
    queues
}

pub(crate) fn add_address(device: u32, address: &str) {
    let net: IpNet = address.parse().unwrap();
    with(async |handle| {
        let mut request = handle.address().add(device, net.addr(), net.prefix_len());
        // Usable at once, without duplicate address detection.
        request.message_mut().header.flags = AddressHeaderFlags::Nodad;
        request.execute().await.unwrap();
    });
}

/// Adds a route to a table: to a device, or a blackhole.
pub(crate) fn add_route(prefix: &str, device: Option<u32>, table: u32) {
    let prefix: IpNet = prefix.parse().unwrap();
    let mut route = match prefix {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .table_id(table)
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .table_id(table)
            .build(),
    };
    match device {
        Some(index) => route.attributes.push(RouteAttribute::Oif(index)),
        None => route.header.kind = RouteType::BlackHole,
    }
    with(async |handle| handle.route().add(route).execute().await.unwrap());
}

/// A rule before the main table's, for IPv4.
pub(crate) fn add_rule(table: u32) {
    with(async |handle| {
        let rule = handle.rule().add().v4().table_id(table).priority(100);
        rule.action(RuleAction::ToTable).execute().await.unwrap();
    });
}

pub(crate) fn delete_device(index: u32) {
    with(async |handle| handle.link().del(index).execute().await.unwrap());
}

pub(crate) fn link(index: u32) -> LinkMessage {
    with(async |handle| {
        let mut stream = std::pin::pin!(handle.link().get().match_index(index).execute());
        stream.try_next().await.unwrap().unwrap()
    })
}

/// The names of all devices.
pub(crate) fn device_names() -> Vec<String> {
    with(async |handle| {
        let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.unwrap();
        let attributes = links.into_iter().flat_map(|link| link.attributes);
        attributes
            .filter_map(|a| {
                if let LinkAttribute::IfName(name) = a {
                    Some(name)
                } else {
                    None
                }
            })
            .collect()
    })
}

pub(crate) fn addresses(index: u32) -> Vec<Address> {
    with(async |handle| {
        let request = handle.address().get().set_link_index_filter(index);
        let mut stream = std::pin::pin!(request.execute());
        let mut found = Vec::new();
        while let Some(message) = stream.try_next().await.unwrap() {
            let mut address = None;
            let mut flags = AddressFlags::empty();
            for attribute in &message.attributes {
                if let AddressAttribute::Address(value) = attribute {
                    address = Some(*value);
                } else if let AddressAttribute::Flags(value) = attribute {
                    flags = *value;
                }
            }
            found.push(Address {
                address: address.unwrap(),
                prefix_len: message.header.prefix_len,
                scope: message.header.scope,
                deprecated: flags.contains(AddressFlags::Deprecated),
                tentative: flags.contains(AddressFlags::Tentative),
            });
        }
        found
    })
}

/// Routes of the main table into a device: prefix and preferred source.
pub(crate) fn routes(index: u32) -> Vec<(String, Option<IpAddr>)> {
    routes_of_table(index, 254)
}

/// Routes of a table into a device: prefix and preferred source.
pub(crate) fn routes_of_table(index: u32, table: u8) -> Vec<(String, Option<IpAddr>)> {
    let all = |filter: RouteMessage| {
        with(async |handle| {
            let stream = handle.route().get(filter).execute();
            stream.try_collect::<Vec<RouteMessage>>().await.unwrap()
        })
    };
    let mut found = all(RouteMessageBuilder::<Ipv4Addr>::new().build());
    found.extend(all(RouteMessageBuilder::<Ipv6Addr>::new().build()));
    found.retain(|route| {
        route.header.table == table && route.attributes.contains(&RouteAttribute::Oif(index))
    });
    let described = found.iter().map(|route| {
        let (mut destination, mut source) = (None, None);
        for attribute in &route.attributes {
            if let RouteAttribute::Destination(address) = attribute {
                destination = Some(ip(address));
            } else if let RouteAttribute::PrefSource(address) = attribute {
                source = Some(ip(address));
            }
        }
        let prefix_len = route.header.destination_prefix_length;
        (format!("{}/{prefix_len}", destination.unwrap()), source)
    });
    described.collect()
}

fn ip(address: &RouteAddress) -> IpAddr {
    if let RouteAddress::Inet(v4) = address {
        (*v4).into()
    } else if let RouteAddress::Inet6(v6) = address {
        (*v6).into()
    } else {
        panic!("{address:?} is no IP address")
    }
}

/// Runs requests on a socket of this thread's namespace.
fn with<T>(work: impl AsyncFnOnce(Handle) -> T) -> T {
    block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        let task = tokio::spawn(connection);
        let result = work(handle).await;
        task.abort();
        result
    })
}
