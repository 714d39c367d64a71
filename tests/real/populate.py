"""Makes the objects on the API server, with kubectl as a person would."""

import json

import objects
from stage import command, LAN, binary

RBAC = "config/deploy/base/rbac.yaml"


def populate(stage, root):
    """Nodes, services, slices, and the load balancers' addresses, as read back."""
    stage.apply(objects.NODES)
    for node in ("a", "b"):
        stage.kubectl("patch", "node", f"node-{node}", "--subresource=status", "--type=merge", "-p",
                      json.dumps(objects.node_status(node, LAN[node])))
    stage.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": objects.NAMESPACE}}])
    services, slices = objects.all_objects()
    stage.apply([made for made, _ in services] + slices)
    for made, ingress in services:
        if ingress:
            stage.kubectl("patch", "service", "-n", objects.NAMESPACE, made["metadata"]["name"],
                          "--subresource=status", "--type=merge", "-p",
                          json.dumps({"status": {"loadBalancer": {"ingress": ingress}}}))
    stage.kubectl("apply", "-f", root / RBAC)
    return read_back(stage)


def read_back(stage):
    listed = json.loads(stage.kubectl("get", "services", "-n", objects.NAMESPACE, "-o", "json"))
    return {one["metadata"]["name"]: one for one in listed["items"]}


def least_privilege(stage):
    """A kubeconfig with a token of the service account that config/deploy makes."""
    token = stage.kubectl("create", "token", "kube-tun-proxy", "-n", "kube-system", "--duration=2h")
    return stage.kubeconfig("kube-tun-proxy", token.strip())


def write_config(stage):
    """KubeProxyConfiguration as kube-proxy itself writes it."""
    path = stage.directory / "written.yaml"
    command(binary("KUBE_PROXY"), f"--write-config-to={path}")
    return path
