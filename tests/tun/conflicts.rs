//! What is in the way is named, with the mend, before anything is changed.

use kube_tun_proxy::tun::{Link, LinkConfig, TunError, open_queues};

use crate::namespace::{block_on, config, ok, open};
use crate::netlink;

const MAIN: u32 = 254;

/// The error and the mend of configuring `svc-tun0` with these routes.
fn refused(routes: &[&str]) -> (String, String) {
    let queues = open(1);
    let error = block_on(Link::configure(config(&queues, routes))).unwrap_err();
    (error.to_string(), error.mend().unwrap())
}

pub(crate) fn name_in_use() {
    let held = open(1);
    let error = open_queues("svc-tun0", 1).unwrap_err();
    assert!(matches!(error, TunError::DeviceExists { .. }), "{error:?}");
    assert!(error.mend().unwrap().contains("ip link delete svc-tun0"));
    drop(held);
    // Of another kind.
    let error = open_queues("lo", 1).unwrap_err();
    assert!(matches!(error, TunError::DeviceExists { .. }), "{error:?}");
    drop(open(1));
}

pub(crate) fn same_prefix() {
    let other = netlink::other_device("eth1");
    netlink::add_route("10.0.0.0/16", Some(other.index), MAIN);
    netlink::add_route("fd00:10::/112", Some(other.index), MAIN);
    let (error, mend) = refused(&["10.0.0.0/16"]);
    assert_eq!(
        error,
        "device svc-tun0: cannot route 10.0.0.0/16 into it: the route 10.0.0.0/16 dev eth1 would \
         take that traffic"
    );
    assert!(
        mend.contains("ip route delete 10.0.0.0/16 dev eth1;"),
        "{mend}"
    );
    let (error, mend) = refused(&["fd00:10::/112"]);
    assert!(error.contains("fd00:10::/112 dev eth1"), "{error}");
    assert!(
        mend.contains("ip -6 route delete fd00:10::/112 dev eth1;"),
        "{mend}"
    );
}

pub(crate) fn part_of_the_prefix() {
    let other = netlink::other_device("cni0");
    netlink::add_route("10.0.5.0/24", Some(other.index), MAIN);
    netlink::add_route("fd00:10::8000/113", Some(other.index), MAIN);
    let (error, _) = refused(&["10.0.0.0/16"]);
    assert!(error.contains("the route 10.0.5.0/24 dev cni0"), "{error}");
    let (error, _) = refused(&["fd00:10::/112"]);
    assert!(
        error.contains("the route fd00:10::8000/113 dev cni0"),
        "{error}"
    );
    // Nothing was left half done.
    assert_eq!(netlink::device_names(), ["lo", "cni0"]);
}

pub(crate) fn blackhole() {
    netlink::add_route("10.0.0.0/16", None, MAIN);
    let (error, mend) = refused(&["10.0.0.0/16"]);
    assert!(error.contains("the route 10.0.0.0/16 blackhole"), "{error}");
    assert!(
        mend.contains("ip route delete blackhole 10.0.0.0/16;"),
        "{mend}"
    );
}

pub(crate) fn wider_route() {
    let other = netlink::other_device("eth1");
    for prefix in ["10.0.0.0/8", "0.0.0.0/0", "fd00::/8", "::/0"] {
        netlink::add_route(prefix, Some(other.index), MAIN);
    }
    let queues = open(1);
    block_on(async {
        ok(Link::configure(config(&queues, &["10.0.0.0/16", "fd00:10::/112"])).await);
    });
    assert_eq!(netlink::routes(queues.index).len(), 2);
}

/// As on a node with IPVS, which has every service address in the local table,
/// the one that is looked up to check the route among them.
pub(crate) fn node_address_in_the_range() {
    let other = netlink::other_device("kube-ipvs0");
    netlink::add_address(other.index, "10.0.0.1/32");
    netlink::add_address(other.index, "10.0.0.10/32");
    let queues = open(1);
    block_on(async { ok(Link::configure(config(&queues, &["10.0.0.0/16"])).await) });
    assert_eq!(netlink::routes(queues.index).len(), 1);
}

pub(crate) fn host_route_elsewhere() {
    let other = netlink::other_device("eth1");
    netlink::add_route("203.0.113.9/32", Some(other.index), MAIN);
    netlink::add_route("2001:db8::9/128", Some(other.index), MAIN);
    let queues = open(1);
    block_on(async {
        let link = ok(Link::configure(config(&queues, &["10.0.0.0/16"])).await);
        for route in ["203.0.113.9/32", "2001:db8::9/128"] {
            let error = link.add_route(route.parse().unwrap()).await.unwrap_err();
            assert!(matches!(error, TunError::RouteConflict { .. }), "{error:?}");
            assert!(error.to_string().contains("dev eth1"), "{error}");
        }
        // The rest is not touched.
        ok(link.add_route("203.0.113.10/32".parse().unwrap()).await);
    });
    assert_eq!(netlink::routes(queues.index).len(), 2);
}

pub(crate) fn rule_to_another_table() {
    let other = netlink::other_device("vpn0");
    netlink::add_route("10.0.0.0/12", Some(other.index), 52);
    netlink::add_rule(52);
    let (error, mend) = refused(&["10.0.0.0/16"]);
    assert_eq!(
        error,
        "device svc-tun0: 10.0.0.0/16 is routed into it, but traffic to 10.0.0.1 goes dev vpn0 by \
         table 52"
    );
    assert!(mend.contains("ip rule"), "{mend}");

    // While running: the route that helps nobody is taken back.
    let queues = open(1);
    block_on(async {
        let link = ok(Link::configure(config(&queues, &[])).await);
        let error = link
            .add_route("10.0.0.3/32".parse().unwrap())
            .await
            .unwrap_err();
        assert!(
            matches!(error, TunError::RouteBypassed { table: 52, .. }),
            "{error:?}"
        );
    });
    assert!(netlink::routes(queues.index).is_empty());
}

pub(crate) fn address_in_use() {
    let other = netlink::other_device("eth1");
    netlink::add_address(other.index, "169.254.84.78/16");
    let (error, mend) = refused(&["10.0.0.0/16"]);
    assert_eq!(
        error,
        "device svc-tun0: its address 169.254.84.78 is in use on device eth1"
    );
    assert!(mend.contains("--tun-address"), "{mend}");
}

pub(crate) fn address_in_service_range() {
    let queues = open(1);
    let config = LinkConfig {
        addresses: LinkConfig::addresses_or_default(&["10.0.0.9".parse().unwrap()]),
        ..config(&queues, &["10.0.0.0/16"])
    };
    let error = block_on(Link::configure(config)).unwrap_err();
    assert!(
        matches!(error, TunError::AddressInServiceRange { .. }),
        "{error:?}"
    );
    assert!(netlink::addresses(queues.index).is_empty());
}
