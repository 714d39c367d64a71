//! What the device is like, and how it goes.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kube_tun_proxy::tun::{
    DEFAULT_ADDRESS_V4, DEFAULT_ADDRESS_V6, Link, LinkConfig, Offloads, open_queues,
};
use rtnetlink::packet_route::address::AddressScope;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};

use crate::namespace::{block_on, config, ok, open, sysctl};
use crate::netlink;

pub(crate) fn device_is_as_configured() {
    let queues = open(2);
    assert_eq!((queues.name.as_str(), queues.queues.len()), ("svc-tun0", 2));
    // This kernel may lack USO (Linux 6.2), never the rest.
    let offloads = Offloads {
        udp_segmentation: true,
        ..queues.offloads
    };
    assert_eq!(
        offloads,
        Offloads {
            checksum: true,
            tcp_segmentation: true,
            udp_segmentation: true
        }
    );

    block_on(async {
        let link = ok(Link::configure(config(&queues, &["10.0.0.0/16", "fd00:10::/112"])).await);
        assert_eq!((link.name(), link.index()), ("svc-tun0", queues.index));
        assert!(link.ipv6_missing().is_none());
    });

    let link = netlink::link(queues.index);
    assert!(link.header.flags.contains(LinkFlags::Up));
    assert!(!link.header.flags.contains(LinkFlags::Multicast));
    assert!(link.attributes.contains(&LinkAttribute::Mtu(1500)));
    assert!(link.attributes.contains(&LinkAttribute::TxQueueLen(10_000)));

    // And no link-local address, from which router solicitations would come.
    let addresses = netlink::addresses(queues.index);
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    let v4 = &addresses[0];
    assert_eq!((v4.address, v4.prefix_len), (DEFAULT_ADDRESS_V4.into(), 32));
    assert_eq!(v4.scope, AddressScope::Link);
    let v6 = &addresses[1];
    assert_eq!(
        (v6.address, v6.prefix_len),
        (DEFAULT_ADDRESS_V6.into(), 128)
    );
    assert!(v6.deprecated && !v6.tentative, "{v6:?}");

    assert_eq!(
        netlink::routes(queues.index),
        [
            ("10.0.0.0/16".to_owned(), Some(DEFAULT_ADDRESS_V4.into())),
            ("fd00:10::/112".to_owned(), Some(DEFAULT_ADDRESS_V6.into())),
        ]
    );
}

/// Nothing makes the kernel itself send packets into the device.
pub(crate) fn device_is_quiet() {
    // A device of a node that forwards joins the routers' multicast group.
    sysctl("ipv6/conf/all/forwarding", "1");
    sysctl("ipv6/conf/default/forwarding", "1");
    let groups = |device: &str| {
        let table = std::fs::read_to_string("/proc/thread-self/net/igmp6").unwrap();
        let of_device = table
            .lines()
            .filter(|line| line.split_whitespace().nth(1) == Some(device));
        of_device
            .map(|line| line.split_whitespace().nth(2).unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let routers = "ff020000000000000000000000000002".to_owned();
    let queues = open(1);
    assert!(
        groups("svc-tun0").contains(&routers),
        "the test has lost its point"
    );

    block_on(async { ok(Link::configure(config(&queues, &["fd00:10::/112"])).await) });
    assert!(!groups("svc-tun0").contains(&routers));
    let local = netlink::routes_of_table(queues.index, 255);
    let own = |(prefix, _): &(String, _)| {
        [
            format!("{DEFAULT_ADDRESS_V4}/32"),
            format!("{DEFAULT_ADDRESS_V6}/128"),
        ]
        .contains(prefix)
    };
    assert!(local.len() == 2 && local.iter().all(own), "{local:?}");
}

/// A device without an address borrows from others, but not from ours.
pub(crate) fn addresses_serve_service_routes_only() {
    let queues = open(1);
    let config = config(&queues, &["10.0.0.0/16", "fd00:10::/112"]);
    block_on(async { ok(Link::configure(config).await) });
    let bare = netlink::other_device("bare0");
    netlink::add_route("192.0.2.0/24", Some(bare.index), 254);

    assert_eq!(source_for("10.0.0.3:53"), DEFAULT_ADDRESS_V4);
    assert_eq!(source_for("[fd00:10::3]:53"), DEFAULT_ADDRESS_V6);
    assert_ne!(source_for("192.0.2.1:53"), DEFAULT_ADDRESS_V4);

    // Beside a preferred address elsewhere the deprecated one loses, even to a
    // peer of its own /48.
    let third = netlink::other_device("addr0");
    netlink::add_address(third.index, "2001:db8:1::5/128");
    netlink::add_route("fdaf:df1a:d6a2:1::/64", Some(bare.index), 254);
    let expected: IpAddr = "2001:db8:1::5".parse().unwrap();
    assert_eq!(source_for("[fdaf:df1a:d6a2:1::1]:53"), expected);
}

/// The source that the kernel picks for a client.
fn source_for(destination: &str) -> IpAddr {
    let destination: SocketAddr = destination.parse().unwrap();
    let any = if destination.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(destination).unwrap();
    socket.local_addr().unwrap().ip()
}

pub(crate) fn own_address_replaces_the_default() {
    let queues = open(1);
    let own: IpAddr = "198.51.100.7".parse().unwrap();
    block_on(async {
        let config = LinkConfig {
            addresses: LinkConfig::addresses_or_default(&[own]),
            mtu: 9000,
            tx_queue_len: 100,
            ..config(&queues, &["10.0.0.0/16", "fd00:10::/112"])
        };
        ok(Link::configure(config).await);
    });
    assert_eq!(
        netlink::routes(queues.index),
        [
            ("10.0.0.0/16".to_owned(), Some(own)),
            ("fd00:10::/112".to_owned(), Some(DEFAULT_ADDRESS_V6.into())),
        ]
    );
    let link = netlink::link(queues.index);
    assert!(link.attributes.contains(&LinkAttribute::Mtu(9000)));
    assert!(link.attributes.contains(&LinkAttribute::TxQueueLen(100)));
}

pub(crate) fn routes_come_and_go() {
    let queues = open(1);
    let prefixes = |index| -> Vec<String> {
        netlink::routes(index)
            .into_iter()
            .map(|(prefix, _)| prefix)
            .collect()
    };
    let link = block_on(async { ok(Link::configure(config(&queues, &[])).await) });
    assert!(prefixes(queues.index).is_empty());
    drop(link);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let queues = ok(open_queues("svc-tun1", 1));
    let link = runtime.block_on(async {
        let config = LinkConfig {
            addresses: vec![
                "198.51.100.7".parse().unwrap(),
                "fd00:99::7".parse().unwrap(),
            ],
            ..config(&queues, &[])
        };
        ok(Link::configure(config).await)
    });
    for route in ["10.0.0.3/32", "fd00:10::3/128", "10.7.0.0/16"] {
        let route = route.parse().unwrap();
        runtime.block_on(async {
            ok(link.add_route(route).await);
            // A second time is no error.
            ok(link.add_route(route).await);
        });
    }
    // Host bits set, as somebody may write it.
    runtime.block_on(async { ok(link.add_route("10.8.1.2/16".parse().unwrap()).await) });
    assert_eq!(
        prefixes(queues.index),
        [
            "10.0.0.3/32",
            "10.7.0.0/16",
            "10.8.0.0/16",
            "fd00:10::3/128"
        ]
    );
    for route in ["10.0.0.3/32", "fd00:10::3/128", "10.8.0.0/16"] {
        let route = route.parse().unwrap();
        runtime.block_on(async {
            ok(link.remove_route(route).await);
            ok(link.remove_route(route).await);
        });
    }
    assert_eq!(prefixes(queues.index), ["10.7.0.0/16"]);
}

pub(crate) fn without_ipv6() {
    sysctl("ipv6/conf/default/disable_ipv6", "1");
    let queues = open(1);
    block_on(async {
        let link = ok(Link::configure(config(&queues, &["10.0.0.0/16", "fd00:10::/112"])).await);
        assert!(link.ipv6_missing().is_some());
        let more = "fd00:11::/112".parse().unwrap();
        ok(link.add_route(more).await);
        ok(link.remove_route(more).await);
    });
    assert_eq!(
        netlink::routes(queues.index),
        [("10.0.0.0/16".to_owned(), Some(DEFAULT_ADDRESS_V4.into()))]
    );
}

pub(crate) fn name_pattern_is_filled_in() {
    let first = ok(open_queues("svc%d", 2));
    let second = ok(open_queues("svc%d", 1));
    assert_eq!(
        (first.name.as_str(), second.name.as_str()),
        ("svc0", "svc1")
    );
    assert_ne!(first.index, second.index);
}

pub(crate) fn device_goes_with_its_last_queue() {
    let mut queues = open(3);
    block_on(async { ok(Link::configure(config(&queues, &["10.0.0.0/16"])).await) });
    let index = queues.index;
    while queues.queues.len() > 1 {
        drop(queues.queues.pop());
        assert!(netlink::device_names().contains(&queues.name));
    }
    drop(queues.queues.pop());
    assert_eq!(netlink::device_names(), ["lo"]);
    assert!(netlink::routes(index).is_empty());
    // The name is free again at once.
    drop(open(1));
}

pub(crate) fn descriptor_can_be_handed_over() {
    let mut queues = open(1);
    let fd = queues.queues.pop().unwrap().into_raw_fd();
    assert!(netlink::device_names().contains(&queues.name));
    // SAFETY: `into_raw_fd` has just made this the descriptor's only owner.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    assert_eq!(netlink::device_names(), ["lo"]);
}

pub(crate) fn deleted_device_is_an_error() {
    let queues = open(1);
    block_on(async { ok(Link::configure(config(&queues, &["10.0.0.0/16"])).await) });
    let queue = &queues.queues[0];
    let mut buf = [0; 2048];
    assert_eq!(
        queue.read(&mut buf).unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
    netlink::delete_device(queues.index);
    assert_eq!(
        queue.read(&mut buf).unwrap_err().raw_os_error(),
        Some(libc::EBADFD)
    );
    assert_eq!(
        queue.write(&[0; 64]).unwrap_err().raw_os_error(),
        Some(libc::EBADFD)
    );
}
