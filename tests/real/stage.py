"""Network namespaces, and the processes of a cluster in them.

The whole stage lives in the network, mount and process namespaces that `run`
has entered, and ends with them.

    master   192.168.77.1   etcd, kube-apiserver; bridge `lan` of all the others
    a        192.168.77.2   kube-tun-proxy      pods a1, a2 in 10.244.1.0/24
    b        192.168.77.3   kube-proxy          pods b1, b2 in 10.244.2.0/24
    xa, xb   192.168.77.21, .22   clients that reach services by a and by b
"""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SERVICES = "10.96.0.0/12", "fd00:96::/108"
OTHERS = "203.0.113.0/24", "fd00:203::/64"  # external and load balancer addresses
LAN = {"master": 1, "a": 2, "b": 3, "xa": 21, "xb": 22}
PODS = {"a": 1, "b": 2}
TOKENS = {
    "admin-token": ("admin", "system:masters"),
    "kube-proxy-token": ("system:kube-proxy", ""),
    "nobody-token": ("nobody", ""),
}


def say(*words):
    print(f"{time.strftime('%H:%M:%S')}", *words, flush=True)


def command(*words, **options):
    words = [str(word) for word in words]
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr or done.stdout}")
    return done.stdout


def ip(*words):
    return command("ip", *words)


def address(node, family=4):
    n = LAN[node]
    return f"192.168.77.{n}" if family == 4 else f"fd00:77::{n:x}"


def pod_address(pod, family=4):
    net, host = PODS[pod[0]], 10 + int(pod[1])
    return f"10.244.{net}.{host}" if family == 4 else f"fd00:244:{net}::{host:x}"


def binary(variable):
    """The program that the variable names; without it there is no run."""
    path = os.environ.get(variable)
    if not path or not os.access(path, os.X_OK):
        sys.exit(f"{variable} must name an executable, is {path!r}")
    return path


class Process:
    """A program in a namespace, with its output in a file."""

    def __init__(self, stage, name, namespace, words, **options):
        self.name, self.log = name, stage.directory / f"{name}.log"
        words = [str(word) for word in words]
        self.start = lambda: subprocess.Popen(
            ["ip", "netns", "exec", namespace, *words],
            stdout=open(self.log, "ab"),
            stderr=subprocess.STDOUT,
            **options,
        )
        self.process = self.start()

    def alive(self):
        return self.process.poll() is None

    def kill(self, sign=signal.SIGKILL):
        self.process.send_signal(sign)
        self.process.wait()

    def again(self):
        self.process = self.start()

    def memory(self):
        """Resident memory and its peak, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return [int(re.search(rf"{key}:\s+(\d+)", status)[1]) / 1024 for key in ("VmRSS", "VmHWM")]

    def processor(self):
        """Seconds of CPU time."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Agent:
    """Asks from inside a namespace: agent.py."""

    def __init__(self, namespace):
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, HERE / "agent.py", "ask"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Stage:
    def __init__(self, directory):
        self.directory = Path(directory)
        self.directory.mkdir(exist_ok=True)
        self.agents, self.servers = {}, []
        self.proxies = {}

    # --- network

    def network(self):
        Path("/run/netns").mkdir(exist_ok=True)
        command("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
        for name in [*LAN, "a1", "a2", "b1", "b2"]:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            for key in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
                forward = "1" if name in ("master", "a", "b") else "0"
                self.sysctl(name, key, forward)
            # Else some refusals would be silence.
            self.sysctl(name, "ipv4.icmp_ratelimit", 0)
            self.sysctl(name, "ipv6.icmp.ratelimit", 0)
            self.sysctl(name, "ipv4.icmp_msgs_per_sec", 1000000)
            self.sysctl(name, "ipv4.icmp_msgs_burst", 1000000)
        self.bridge("master", "lan", [f"{address('master')}/24", f"{address('master', 6)}/64"])
        for name in LAN:
            if name != "master":
                self.cable("master", "lan", name, [f"{address(name)}/24", f"{address(name, 6)}/64"])
        for node, net in PODS.items():
            self.bridge(node, "pods", [f"10.244.{net}.1/24", f"fd00:244:{net}::1/64"])
            for pod in (f"{node}1", f"{node}2"):
                self.cable(node, "pods", pod, [f"{pod_address(pod)}/24", f"{pod_address(pod, 6)}/64"])
                ip("-n", pod, "route", "add", "default", "via", f"10.244.{net}.1")
                ip("-n", pod, "-6", "route", "add", "default", "via", f"fd00:244:{net}::1")
            for other in LAN:
                if other != node:
                    ip("-n", other, "route", "add", f"10.244.{net}.0/24", "via", address(node))
                    ip("-n", other, "-6", "route", "add", f"fd00:244:{net}::/64", "via", address(node, 6))
        for node in PODS:
            # netfilter judges what has a route: a default one, as nodes have.
            ip("-n", node, "route", "add", "default", "via", address("master"))
            ip("-n", node, "-6", "route", "add", "default", "via", address("master", 6))
            for net in (SERVICES[0], OTHERS[0]):
                ip("-n", f"x{node}", "route", "add", net, "via", address(node))
            for net in (SERVICES[1], OTHERS[1]):
                ip("-n", f"x{node}", "-6", "route", "add", net, "via", address(node, 6))

    def enter(self, namespace):
        """Puts this thread, and those that it starts, into a namespace."""
        with open(f"/run/netns/{namespace}") as it:
            if ctypes.CDLL(None, use_errno=True).setns(it.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"setns {namespace}")

    def sysctl(self, name, key, value):
        command("ip", "netns", "exec", name, "sysctl", "-qw", f"net.{key}={value}")

    def bridge(self, name, device, addresses):
        ip("-n", name, "link", "add", device, "type", "bridge")
        ip("-n", name, "link", "set", device, "up")
        for one in addresses:
            ip("-n", name, "address", "add", one, "dev", device, *(["nodad"] if ":" in one else []))

    def cable(self, name, device, other, addresses):
        ip("-n", name, "link", "add", f"to-{other}", "type", "veth", "peer", "name", "eth0", "netns", other)
        ip("-n", name, "link", "set", f"to-{other}", "master", device, "up")
        # A pod that reaches itself by a service.
        ip("-n", name, "link", "set", f"to-{other}", "type", "bridge_slave", "hairpin", "on")
        ip("-n", other, "link", "set", "eth0", "up")
        for one in addresses:
            ip("-n", other, "address", "add", one, "dev", "eth0", *(["nodad"] if ":" in one else []))

    def agent(self, namespace):
        if namespace not in self.agents:
            self.agents[namespace] = Agent(namespace)
        return self.agents[namespace]

    def pods(self):
        for pod in ("a1", "a2", "b1", "b2"):
            self.servers.append(
                Process(self, f"pod-{pod}", pod, [sys.executable, HERE / "agent.py", "serve", pod])
            )

    # --- control plane

    def certificates(self):
        d = self.directory
        command("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30",
                "-subj", "/CN=ca", "-keyout", d / "ca.key", "-out", d / "ca.crt")
        command("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=kube-apiserver",
                "-keyout", d / "server.key", "-out", d / "server.csr")
        (d / "names").write_text(f"subjectAltName=IP:{address('master')},IP:127.0.0.1,IP:10.96.0.1\n")
        command("openssl", "x509", "-req", "-in", d / "server.csr", "-CA", d / "ca.crt", "-CAkey",
                d / "ca.key", "-CAcreateserial", "-days", "30", "-extfile", d / "names",
                "-out", d / "server.crt")
        command("openssl", "genrsa", "-out", d / "accounts.key", "2048")
        command("openssl", "rsa", "-in", d / "accounts.key", "-pubout", "-out", d / "accounts.pub")
        lines = [f'{token},{user},{user},"{groups}"' for token, (user, groups) in TOKENS.items()]
        (d / "tokens.csv").write_text("\n".join(lines) + "\n")

    def control_plane(self):
        d = self.directory
        self.certificates()
        self.etcd = Process(self, "etcd", "master", etcd_words(d))
        self.api = Process(self, "kube-apiserver", "master", [
            binary("KUBE_APISERVER"),
            "--etcd-servers=http://127.0.0.1:2379",
            f"--service-cluster-ip-range={','.join(SERVICES)}",
            "--authorization-mode=RBAC",
            f"--token-auth-file={d / 'tokens.csv'}",
            f"--tls-cert-file={d / 'server.crt'}",
            f"--tls-private-key-file={d / 'server.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={d / 'accounts.pub'}",
            f"--service-account-signing-key-file={d / 'accounts.key'}",
            f"--advertise-address={address('master')}",
            "--profiling=false",
            *os.environ.get("KUBE_APISERVER_OPTIONS", "").split(),
        ])
        for token in TOKENS:
            self.kubeconfig(token, token)
        self.wait_for_api()

    def kubeconfig(self, name, token):
        """Writes one, in the shape that kubeadm's have, and returns its path."""
        path = self.directory / f"{name}.conf"
        path.write_text(json.dumps({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "real", "cluster": {
                "server": f"https://{address('master')}:6443",
                "certificate-authority": str(self.directory / "ca.crt"),
            }}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "user"}}],
            "current-context": "real",
        }))
        return path

    def wait_for_api(self, seconds=120):
        end = time.monotonic() + seconds
        while True:
            try:
                if self.kubectl("get", "--raw", "/readyz") == "ok":
                    return
            except RuntimeError as error:
                if time.monotonic() > end or not self.api.alive():
                    raise RuntimeError(f"kube-apiserver: {error}\n{tail(self.api.log)}") from None
            time.sleep(0.2)

    def kubectl(self, *words, user="admin-token", **options):
        config = self.directory / f"{user}.conf"
        return command("ip", "netns", "exec", "master", "kubectl", "--kubeconfig", config, *words,
                       **options)

    def apply(self, objects, *words):
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        return self.kubectl("apply", "-f", "-", *words, input=text)

    # --- proxies

    def our_proxy(self, config, *options):
        d = self.directory
        return Process(self, "kube-tun-proxy", "a", [
            binary("KUBE_TUN_PROXY"), "run", "--kubeconfig", config,
            "--hostname-override=node-a", "--healthz-bind-address=0.0.0.0:10256",
            "--metrics-bind-address=0.0.0.0:10249", f"--admin-socket={d / 'admin.sock'}",
            "--access-log=false", *options,
        ])

    def run_ours(self, *options):
        """With nothing but these options, and where the admin socket is."""
        return Process(self, "kube-tun-proxy-2", "a", [
            binary("KUBE_TUN_PROXY"), "run", f"--admin-socket={self.directory / 'second.sock'}",
            *options])

    def ours(self, *words):
        """What our proxy's admin socket says, as JSON."""
        words = [*words, "-o", "json", f"--admin-socket={self.directory / 'admin.sock'}"]
        return json.loads(command(binary("KUBE_TUN_PROXY"), *words))

    def kube_proxy(self):
        d = self.directory
        text = (d / "written.yaml").read_text()
        for old, new in (
            ('kubeconfig: ""', f"kubeconfig: {d / 'kube-proxy-token.conf'}"),
            ('clusterCIDR: ""', "clusterCIDR: 10.244.0.0/16,fd00:244::/48"),
            ('hostnameOverride: ""', "hostnameOverride: node-b"),
            ("mode: iptables", "mode: nftables"),
            ("metricsBindAddress: 127.0.0.1:10249", "metricsBindAddress: 0.0.0.0:10249"),
            # Not to be written from a namespace.
            ("maxPerCore: 32768", "maxPerCore: 0"),
            ("min: 131072", "min: 0"),
            ("oomScoreAdj: -999", "oomScoreAdj: 0"),
        ):
            if old not in text:
                raise RuntimeError(f"kube-proxy did not write '{old}'")
            text = text.replace(old, new)
        (d / "kube-proxy.yaml").write_text(text)
        return Process(self, "kube-proxy", "b", [
            binary("KUBE_PROXY"), f"--config={d / 'kube-proxy.yaml'}", "-v2",
        ])

    def ready(self, process, namespace, url, seconds=60):
        """Waits until the URL answers 200; how long that took."""
        begin = time.monotonic()
        while True:
            told = self.agent(namespace).ask(op="http", url=url)
            if told.get("status") == 200:
                return time.monotonic() - begin
            if time.monotonic() - begin > seconds or not process.alive():
                raise RuntimeError(f"{process.name}: {url}: {told}\n{tail(process.log)}")
            time.sleep(0.01)


def etcd_words(directory):
    """Debian's etcd, or one that takes what it needs from the environment."""
    words = os.environ.get("ETCD_COMMAND")
    if words:
        return [word.replace("DIRECTORY", str(directory / "etcd")) for word in words.split()]
    return [
        binary("ETCD"), f"--data-dir={directory / 'etcd'}",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync", "--quota-backend-bytes=6442450944",
    ]


def tail(path, lines=15):
    return "\n".join(Path(path).read_text(errors="replace").splitlines()[-lines:])
