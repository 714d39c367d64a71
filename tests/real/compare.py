"""The same questions to both proxies: kube-tun-proxy on node a, kube-proxy on b.

Answers are told from the node's point of view: `near1` is the first pod of the
node that was asked through, so that both are the same where both do the same.
"""

import re
from stage import address, pod_address

CLIENTS = "outside", "node", "pod"

# Their endpoints differ from node to node by what is tried, not by where they are.
SAME_FOR_BOTH = "leaving", "one-leaves", "port-per-slice", "two-slices", "far-hints"


def told(node, answers, seen=False):
    """Who answered, and whom they saw where that is asked."""
    out = set()
    for text in answers:
        match = re.fullmatch(r"([ab])([12]) (\S+) (\d+)", text)
        if not match:
            out.add(text)
            continue
        name = ("near" if match[1] == node else "far") + match[2]
        who = match[3]
        if match[4] != "8080":
            name += ":" + match[4]
        if seen:
            name += " sees " + whom(node, who)
        out.add(name)
    return sorted(out)


def whom(node, ip):
    for family in (4, 6):
        if ip == address(f"x{node}", family):
            return "client"
        for pod in ("a1", "a2", "b1", "b2"):
            if ip == pod_address(pod, family):
                return "pod"
        if ip == address(node, family):
            return "node"
    return "node" if ip.endswith((".1", "::1")) else ip


class Questions:
    def __init__(self, stage, services):
        self.stage = stage
        self.services = services
        self.rows = []

    def namespace(self, node, client):
        return {"outside": f"x{node}", "node": node, "pod": f"{node}1"}[client]

    def ask(self, label, client, where, protocol="tcp", times=40, seen=False):
        """`where` gives address and port for a node."""
        row = {}
        for node in ("a", "b"):
            target = where(node)
            if target is None:
                row[node] = ["-"]
                continue
            ip, port = target
            answers = self.stage.agent(self.namespace(node, client)).ask(
                op=protocol, ip=ip, port=port, times=times)
            one = label.split()[0]
            row[node] = told("a" if one in SAME_FOR_BOTH else node, answers, seen)
            if one == "sticky":
                row[node] = [f"{len(row[node])} of them"]
        self.rows.append((label, client, protocol, row["a"], row["b"]))

    def spec(self, name, node):
        one = self.services.get(name) or self.services[f"{name}-{node}"]
        return one["spec"], one.get("status", {}).get("loadBalancer", {}).get("ingress", [])

    # --- addresses of a service, as a function of the node

    def cluster_ip(self, name, port=80, nth=0):
        return lambda node: (self.spec(name, node)[0]["clusterIPs"][nth], port)

    def ingress(self, name, port=80):
        return lambda node: (self.spec(name, node)[1][0]["ip"], port)

    def external(self, name, port=80):
        return lambda node: (self.spec(name, node)[0]["externalIPs"][0], port)

    def node_port(self, name, nth=0, family=4, host=None):
        def where(node):
            port = self.spec(name, node)[0]["ports"][nth].get("nodePort")
            return (host or address(node, family), port) if port else None
        return where

    def everything(self):
        names = set(self.services)
        kinds = sorted({re.sub(r"-[ab]$", "", n) if re.sub(r"-[ab]$", "", n) + "-a" in names else n
                        for n in names} - {"kubernetes"})
        for name in kinds:
            specs = [self.spec(name, n) for n in ("a", "b")]
            spec, ingress = specs[0]
            for client in CLIENTS:
                ips = [ip for ip in spec.get("clusterIPs", []) if ip != "None"]
                for nth, ip in enumerate(ips):
                    for port in spec["ports"]:
                        if port["protocol"] == "SCTP":
                            continue
                        self.ask(f"{name} cluster IP {'v6 ' if ':' in ip else ''}:{port['port']}", client,
                                 self.cluster_ip(name, port["port"], nth), port["protocol"].lower())
                for what, found in (("load balancer IP", [i["ip"] for i in ingress]),
                                    ("external IP", spec.get("externalIPs", []))):
                    for _ in found:
                        where = self.ingress if what.startswith("load") else self.external
                        for protocol, port in (("tcp", 80), ("udp", 53)):
                            self.ask(f"{name} {what} :{port}", client, where(name, port), protocol)
                for nth, port in enumerate(spec.get("ports", [])):
                    if not port.get("nodePort"):
                        continue
                    for family in {6 if ":" in ip else 4 for ip in ips}:
                        self.ask(f"{name} node port v{family} of :{port['port']}", client,
                                 self.node_port(name, nth, family), port["protocol"].lower())
        for client in CLIENTS:
            for what, where in (
                ("plain, port it has not", self.cluster_ip("plain", 81)),
                ("ext, port it has not", self.external("ext", 81)),
                ("lb, port it has not", self.ingress("lb", 81)),
                ("an address that no service has", lambda node: ("10.111.222.33", 80)),
                ("an external address that no service has", lambda node: ("203.0.113.99", 80)),
            ):
                for protocol in ("tcp", "udp"):
                    self.ask(what, client, where, protocol, times=1)
        self.ask("np on 127.0.0.1", "node", self.node_port("np", host="127.0.0.1"))
        for name, where in (
            ("plain cluster IP", self.cluster_ip("plain")),
            ("np node port", self.node_port("np")),
            ("etp load balancer IP", self.ingress("etp")),
            ("etp node port", self.node_port("etp")),
            ("lb load balancer IP", self.ingress("lb")),
        ):
            for client in CLIENTS:
                self.ask(f"{name}, seen", client, where, seen=True)

    def print(self):
        """Prints the differences; those that are not known are the answer."""
        same, strange = 0, []
        for row in self.rows:
            label, client, protocol, ours, theirs = row
            if ours == theirs:
                same += 1
                continue
            why = known(label, client, protocol, ours, theirs)
            print(f"{label} ({protocol}) from {client}: {', '.join(ours)} | kube-proxy: "
                  f"{', '.join(theirs)} [{why or 'NOT KNOWN'}]")
            if not why:
                strange.append(row)
        print(f"{len(self.rows)} questions, {same} answered alike", flush=True)
        return strange


def known(label, client, protocol, ours, theirs):
    """Why an answer differs, where it is meant to: docs/real-cluster.md."""
    if protocol == "udp" and client == "node" and theirs == ["forbidden"] and ours[0] in ("refused", "silence"):
        return "netfilter refuses the sender's own system call"
    if label.startswith(("ext, port", "lb, port")) and ours == ["refused"]:
        return "of an external address netfilter takes only the ports that there are"
    if label.startswith("lb-deny-none load balancer IP") and ours == ["refused"]:
        return "as in iptables mode: without endpoints everybody is refused"
    if label == "np on 127.0.0.1" and theirs == ["refused"]:
        return "nftables mode has no node ports on loopback"
    if label.endswith(", seen") and all(one.endswith(" sees node") for one in ours):
        return "every connection is masqueraded"
    return None
