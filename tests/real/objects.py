"""Services and slices of which both proxies are asked."""

NAMESPACE = "real"
SLICES = "discovery.k8s.io/v1", "EndpointSlice"


def service(name, ports=None, **spec):
    """A Service; `ports` are (name, port, protocol) and more, `status` its ingress."""
    ingress = spec.pop("ingress", None)
    annotations, labels = spec.pop("annotations", {}), spec.pop("labels", {})
    if spec.get("type") != "ExternalName":
        spec["ports"] = [
            {"name": p[0], "port": p[1], "protocol": p[2], "targetPort": 8080, **(p[3] if p[3:] else {})}
            for p in ports or [("web", 80, "TCP"), ("dns", 53, "UDP")]
        ]
    made = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations, "labels": labels},
        "spec": spec,
    }
    return made, ingress


def slice_of(name, addresses, ports=None, family="IPv4", suffix="", **more):
    """A slice; `addresses` are (address, node) with conditions and hints."""
    ports = [{"name": "web", "port": 8080, "protocol": "TCP"},
             {"name": "dns", "port": 8080, "protocol": "UDP"}] if ports is None else ports
    endpoints = []
    for ip, node, *rest in addresses:
        endpoint = {"addresses": [ip], "nodeName": f"node-{node}", "zone": f"zone-{node}",
                    "conditions": {"ready": True, "serving": True, "terminating": False}}
        for extra in rest:
            endpoint.update(extra)
        endpoints.append(endpoint)
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}{suffix}", "namespace": NAMESPACE,
                     "labels": {"kubernetes.io/service-name": name,
                                "endpointslice.kubernetes.io/managed-by": "real.tests"}},
        "addressType": family,
        "endpoints": endpoints,
        "ports": ports,
        **more,
    }


A1, A2 = ("10.244.1.11", "a"), ("10.244.1.12", "a")
B1, B2 = ("10.244.2.11", "b"), ("10.244.2.12", "b")
ALL = [A1, A2, B1, B2]
ALL6 = [("fd00:244:1::b", "a"), ("fd00:244:1::c", "a"), ("fd00:244:2::b", "b"), ("fd00:244:2::c", "b")]
UNREADY = {"conditions": {"ready": False, "serving": False, "terminating": False}}
LEAVING = {"conditions": {"ready": False, "serving": True, "terminating": True}}
GONE = {"conditions": {"ready": False, "serving": False, "terminating": True}}


def zone(node):
    return {"hints": {"forZones": [{"name": f"zone-{node}"}]}}


def only(node):
    return {"hints": {"forNodes": [{"name": f"node-{node}"}],
                      "forZones": [{"name": f"zone-{node}"}]}}


def all_objects():
    """Services with their load balancers' addresses, and slices."""
    services, slices = [], []

    def add(made, *of):
        services.append(made)
        slices.extend(of)

    for name in ("plain",):
        add(service(name), slice_of(name, ALL))
    add(service("dual", ipFamilyPolicy="RequireDualStack", type="NodePort"),
        slice_of("dual", ALL), slice_of("dual", ALL6, family="IPv6", suffix="-6"))
    add(service("none"))
    add(service("none-np", type="NodePort"))
    add(service("unready"), slice_of("unready", [(*A1, UNREADY), (*B1, UNREADY)]))
    add(service("leaving"), slice_of("leaving", [(*A1, LEAVING), (*B1, GONE), (*B2, UNREADY)]))
    add(service("one-leaves"), slice_of("one-leaves", [A1, (*B1, LEAVING)]))
    add(service("np", type="NodePort"), slice_of("np", ALL))
    add(service("headless", clusterIP="None"), slice_of("headless", ALL))
    add(service("elsewhere", type="ExternalName", externalName="example.org"))
    add(service("sctp", [("sig", 80, "SCTP"), ("web", 81, "TCP")]), slice_of(
        "sctp", ALL, [{"name": "sig", "port": 8080, "protocol": "SCTP"},
                      {"name": "web", "port": 8080, "protocol": "TCP"}]))
    add(service("sticky", sessionAffinity="ClientIP",
                sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}}), slice_of("sticky", ALL))
    add(service("ext", externalIPs=["203.0.113.20"]), slice_of("ext", ALL))
    add(service("ext-none", externalIPs=["203.0.113.21"]))
    add(service("lb", type="LoadBalancer", ingress=[{"ip": "203.0.113.10", "ipMode": "VIP"}]),
        slice_of("lb", ALL))
    add(service("lb-no-mode", type="LoadBalancer", ingress=[{"ip": "203.0.113.14"}]),
        slice_of("lb-no-mode", ALL))
    add(service("lb-proxy", type="LoadBalancer", ingress=[{"ip": "203.0.113.11", "ipMode": "Proxy"}]),
        slice_of("lb-proxy", ALL))
    add(service("lb-no-np", type="LoadBalancer", allocateLoadBalancerNodePorts=False,
                ingress=[{"ip": "203.0.113.12", "ipMode": "VIP"}]), slice_of("lb-no-np", ALL))
    add(service("lb-allow", type="LoadBalancer", loadBalancerSourceRanges=["192.168.77.16/28"],
                ingress=[{"ip": "203.0.113.15", "ipMode": "VIP"}]), slice_of("lb-allow", ALL))
    add(service("lb-deny", type="LoadBalancer", loadBalancerSourceRanges=["198.51.100.0/24"],
                ingress=[{"ip": "203.0.113.16", "ipMode": "VIP"}]), slice_of("lb-deny", ALL))
    add(service("lb-nodes", type="LoadBalancer", loadBalancerSourceRanges=["192.168.77.0/29"],
                ingress=[{"ip": "203.0.113.17", "ipMode": "VIP"}]), slice_of("lb-nodes", ALL))
    add(service("lb-pods", type="LoadBalancer", loadBalancerSourceRanges=["10.244.0.0/16"],
                ingress=[{"ip": "203.0.113.18", "ipMode": "VIP"}]), slice_of("lb-pods", ALL))
    add(service("lb-deny-none", type="LoadBalancer", loadBalancerSourceRanges=["198.51.100.0/24"],
                ingress=[{"ip": "203.0.113.19", "ipMode": "VIP"}]))
    # Endpoints on one node only: `itp-a` is to a what `itp-b` is to b.
    for i, (node, here) in enumerate((("a", [A1, A2]), ("b", [B1, B2]))):
        add(service(f"itp-{node}", internalTrafficPolicy="Local"), slice_of(f"itp-{node}", here))
        add(service(f"etp-{node}", type="LoadBalancer", externalTrafficPolicy="Local",
                    externalIPs=[f"203.0.113.{40 + i}"],
                    ingress=[{"ip": f"203.0.113.{30 + i}", "ipMode": "VIP"}]),
            slice_of(f"etp-{node}", here))
        add(service(f"etp-leaves-{node}", type="LoadBalancer", externalTrafficPolicy="Local",
                    ingress=[{"ip": f"203.0.113.{32 + i}", "ipMode": "VIP"}]),
            slice_of(f"etp-leaves-{node}", [(*here[0], LEAVING), *(B1, A1)[i:][:1]]))
        add(service(f"both-{node}", type="NodePort", externalTrafficPolicy="Local",
                    internalTrafficPolicy="Local"), slice_of(f"both-{node}", here))
    add(service("etp-none", type="LoadBalancer", externalTrafficPolicy="Local",
                ingress=[{"ip": "203.0.113.36", "ipMode": "VIP"}]))
    for name, how in (("close", "PreferClose"), ("same-zone", "PreferSameZone")):
        add(service(name, trafficDistribution=how), slice_of(name, [
            (*A1, zone("a")), (*A2, zone("a")), (*B1, zone("b")), (*B2, zone("b"))]))
    add(service("same-node", trafficDistribution="PreferSameNode"), slice_of("same-node", [
        (*A1, only("a")), (*A2, only("a")), (*B1, only("b")), (*B2, only("b"))]))
    add(service("half-hints", trafficDistribution="PreferClose"), slice_of("half-hints", [
        (*A1, zone("a")), A2, (*B1, zone("b")), B2]))
    add(service("far-hints", trafficDistribution="PreferClose"), slice_of("far-hints", [
        (*A1, zone("c")), (*B1, zone("c"))]))
    add(service("no-preference"), slice_of("no-preference", [
        (*A1, zone("a")), (*A2, zone("a")), (*B1, zone("b")), (*B2, zone("b"))]))
    add(service("not-ours", labels={"service.kubernetes.io/service-proxy-name": "other"}),
        slice_of("not-ours", ALL))
    add(service("two-slices"), slice_of("two-slices", [A1]),
        slice_of("two-slices", [A1, B1], suffix="-x"))
    add(service("two-ports", [("web", 80, "TCP"), ("more", 82, "TCP", {"targetPort": 8081})]),
        slice_of("two-ports", ALL, [{"name": "web", "port": 8080, "protocol": "TCP"},
                                    {"name": "more", "port": 8081, "protocol": "TCP"}]))
    add(service("port-per-slice", [("web", 80, "TCP"), ("more", 82, "TCP")]),
        slice_of("port-per-slice", [A1], [{"name": "web", "port": 8080, "protocol": "TCP"}]),
        slice_of("port-per-slice", [B1], [{"name": "web", "port": 8081, "protocol": "TCP"},
                                          {"name": "more", "port": 8081, "protocol": "TCP"}],
                 suffix="-x"))
    add(service("wrong-name"), slice_of("wrong-name", ALL, [{"name": "other", "port": 8080,
                                                             "protocol": "TCP"}]))
    add(service("no-ports"), slice_of("no-ports", ALL, []))
    add(service("by-name"), slice_of("by-name", [("pod.example.org", "a")], family="FQDN"))
    add(service("six", ipFamilyPolicy="SingleStack", ipFamilies=["IPv6"], type="LoadBalancer",
                externalIPs=["fd00:203::20"],
                ingress=[{"ip": "fd00:203::10", "ipMode": "VIP"}]),
        slice_of("six", ALL6, family="IPv6"))
    return services, slices


NODES = [
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node-{node}",
                     "labels": {"kubernetes.io/hostname": f"node-{node}",
                                "topology.kubernetes.io/zone": f"zone-{node}"}},
        "spec": {"podCIDRs": [f"10.244.{n}.0/24", f"fd00:244:{n}::/64"], "podCIDR": f"10.244.{n}.0/24"},
    }
    for node, n in (("a", 1), ("b", 2))
]


def node_status(node, n):
    return {"status": {"addresses": [
        {"type": "InternalIP", "address": f"192.168.77.{n}"},
        {"type": "InternalIP", "address": f"fd00:77::{n}"},
        {"type": "Hostname", "address": f"node-{node}"},
    ]}}
