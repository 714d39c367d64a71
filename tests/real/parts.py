"""What `run` does with a cluster."""

import json
import os
import signal
import time

import populate
import size
from compare import Questions
from objects import ALL, NAMESPACE, slice_of
from stage import address, command, say, tail

READY = "http://127.0.0.1:10256/readyz"
HEALTH = "http://127.0.0.1:10256/healthz"


class Run:
    def __init__(self, stage, root):
        self.stage, self.root, self.failures = stage, root, []
        self.services = populate.populate(stage, root)
        populate.write_config(stage)
        self.kubeconfig = populate.least_privilege(stage)
        self.ours = stage.our_proxy(self.kubeconfig)
        took = stage.ready(self.ours, "a", READY)
        say(f"kube-tun-proxy is ready after {took:.2f} s")

    def run(self, parts):
        for part in parts:
            say(f"=== {part}")
            try:
                getattr(self, part)()
            except Exception as error:
                self.failures.append(f"{part}: {type(error).__name__}: {error}")
        return self.failures

    def expect(self, what, good, found=""):
        if not good:
            self.failures.append(f"{what}: {found}")

    def ask(self, namespace, name, times=4, port=80):
        """Who answers at a cluster IP."""
        ip = self.services[name]["spec"]["clusterIP"] if name in self.services else name
        answers = self.stage.agent(namespace).ask(op="tcp", ip=ip, port=port, times=times)
        return sorted({answer.split()[0] for answer in answers})

    def until(self, what, look, wanted, seconds=10):
        end = time.monotonic() + seconds
        while (found := look()) != wanted:
            if time.monotonic() > end:
                self.failures.append(f"{what}: {found} and not {wanted}")
                return
            time.sleep(0.1)
        say(what)

    # --- the same questions to both

    def semantics(self):
        kube_proxy = self.stage.kube_proxy()
        self.stage.ready(kube_proxy, "b", HEALTH)
        self.until("kube-proxy has programmed its rules", lambda: self.ask("b", "plain"),
                   ["a1", "a2", "b1", "b2"], 60)
        questions = Questions(self.stage, self.services)
        questions.everything()
        for row in questions.print():
            self.failures.append(f"a difference that is not known: {row}")
        self.health()
        kube_proxy.kill(signal.SIGTERM)
        log = self.ours.log.read_text()
        self.expect("the log", " ERROR " not in log, tail(self.ours.log))

    def health(self):
        """Health check node ports and /healthz, the bodies byte for byte."""
        def told(node, url):
            got = self.stage.agent(f"x{node}").ask(op="http", url=f"http://{address(node)}{url}")
            headers = {k.lower(): v for k, v in got.get("headers", {}).items()}
            return got.get("status"), {k: headers.get(k) for k in (
                "content-type", "content-length", "x-content-type-options",
                "x-load-balancing-endpoint-weight")}, got.get("body")

        for mine, other in (("etp-a", "etp-b"), ("etp-b", "etp-a"), ("etp-none", "etp-none"),
                            ("etp-leaves-a", "etp-leaves-b"), ("etp-leaves-b", "etp-leaves-a")):
            ports = [self.services[name]["spec"]["healthCheckNodePort"] for name in (mine, other)]
            ours, theirs = told("a", f":{ports[0]}/"), told("b", f":{ports[1]}/")
            same = str(ours).replace(mine, "X") == str(theirs).replace(other, "X")
            self.expect(f"health check node port of {mine}", same, f"{ours} and {theirs}")

        def report(node, path):
            status, _, body = told(node, f":10256{path}")
            body = json.loads(body)
            shape = {key: value for key, value in body.items() if key not in ("lastUpdated", "currentTime")}
            shape["status"] = {family: one["healthy"] for family, one in body["status"].items()}
            return status, shape

        def both(what):
            for path in ("/healthz", "/livez"):
                ours, theirs = report("a", path), report("b", path)
                self.expect(f"{path} {what}", ours == theirs, f"{ours} and {theirs}")

        both("of a node that stays")
        taint = "ToBeDeletedByClusterAutoscaler"
        for node in ("a", "b"):
            self.stage.kubectl("taint", "node", f"node-{node}", f"{taint}=x:NoSchedule")
        for node in ("a", "b"):
            self.until(f"node {node} says that it goes", lambda: report(node, "/healthz")[0], 503)
        both("of a node that goes")
        for node in ("a", "b"):
            self.stage.kubectl("taint", "node", f"node-{node}", f"{taint}-")
            self.until(f"node {node} says that it stays", lambda: report(node, "/healthz")[0], 200)

    # --- ranges, policies, and what a role must hold

    def permissions(self):
        stage = self.stage
        routes = lambda: "10.200.0.0/24" in command("ip", "-n", "a", "route", "show", "dev", "svc-tun0")
        stage.apply([{"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                      "metadata": {"name": "extra"},
                      "spec": {"cidrs": ["10.200.0.0/24", "fd00:97::/112"]}}])
        self.until("a ServiceCIDR that is made is routed", routes, True)
        extra = {"apiVersion": "v1", "kind": "Service",
                 "metadata": {"name": "in-extra", "namespace": NAMESPACE},
                 "spec": {"clusterIP": "10.200.0.7", "ports": [{"name": "web", "port": 80}]}}
        stage.apply([extra, slice_of("in-extra", ALL)])
        self.until("its addresses are served", lambda: self.ask("a1", "10.200.0.7"), ["a1", "a2", "b1", "b2"])
        stage.kubectl("delete", "service", "in-extra", "-n", NAMESPACE)
        stage.kubectl("delete", "servicecidr", "extra", "--wait=false")
        self.until("a ServiceCIDR that goes is not", routes, False)

        policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                  "metadata": {"name": "one", "namespace": NAMESPACE}, "spec": {"podSelector": {}}}
        stage.apply([policy])
        self.until("with a NetworkPolicy pods are not served", lambda: self.ask("a1", "plain", 1), ["silence"])
        self.expect("the node is", self.ask("a", "plain", 1) != ["silence"])
        stage.kubectl("delete", "networkpolicy", "one", "-n", NAMESPACE)
        self.until("without it they are", lambda: self.ask("a1", "plain"), ["a1", "a2", "b1", "b2"])

        # One permission after another is taken away: the proxy goes on with what it knows.
        role = json.loads(stage.kubectl("get", "clusterrole", "kube-tun-proxy", "-o", "json"))
        for i, rule in enumerate(role["rules"]):
            less = {**role, "rules": role["rules"][:i] + role["rules"][i + 1:]}
            less["metadata"] = {"name": "kube-tun-proxy"}
            stage.apply([less])
            self.ours.kill(signal.SIGTERM)
            self.ours.again()
            what = ",".join(rule["resources"])
            needed = rule["resources"][0] in ("services", "endpointslices")
            try:
                stage.ready(self.ours, "a", READY, 5)
                self.expect(f"without {what}", not needed, "it is ready")
            except RuntimeError as error:
                self.expect(f"without {what}", needed, error)
            say(f"without {what}:", tail(self.ours.log, 200).rsplit("started tun", 1)[-1].count("cannot be followed"),
                "warnings")
        stage.apply([{**role, "metadata": {"name": "kube-tun-proxy"}}])
        stage.ready(self.ours, "a", READY, 60)
        self.until("with the role whole again all is served", lambda: self.ask("a1", "plain"),
                   ["a1", "a2", "b1", "b2"])

    # --- kube-proxy's file

    def config(self):
        """What kube-proxy writes is read, and its kubeconfig used."""
        self.ours.kill(signal.SIGTERM)
        path = self.stage.directory / "as-written.yaml"
        text = (self.stage.directory / "written.yaml").read_text()
        path.write_text(text.replace('kubeconfig: ""', f"kubeconfig: {self.kubeconfig}")
                        .replace('hostnameOverride: ""', "hostnameOverride: node-a"))
        process = self.stage.run_ours(f"--config={path}")
        try:
            took = self.stage.ready(process, "a", READY)
            say(f"with kube-proxy's own file: ready after {took:.2f} s")
            self.expect("served", len(self.ask("a1", "plain")) == 4)
        finally:
            process.kill(signal.SIGTERM)
            self.ours.again()
            self.stage.ready(self.ours, "a", READY)

    # --- ten thousand services

    def size(self):
        stage = self.stage
        say("machine:", os.cpu_count(), "CPUs, load", " ".join(f"{x:.1f}" for x in os.getloadavg()))
        size.fill(stage)
        self.until("everything is there", lambda: len(size.differences(stage)), 0, 120)
        for _ in range(3):
            self.ours.kill(signal.SIGTERM)
            self.ours.again()
            took = stage.ready(self.ours, "a", READY)
            time.sleep(3)
            say(f"start to ready {took:.2f} s, then {self.ours.memory()[0]:.0f} MiB, "
                f"{self.ours.processor():.2f} s of CPU time; load {os.getloadavg()[0]:.1f}")
        for _ in range(2):
            before, cpu = self.ours.memory()[0], self.ours.processor()
            say(size.churn(stage))
            say(f"memory {before:.0f} MiB before, {self.ours.memory()[0]:.0f} after, "
                f"{self.ours.processor() - cpu:.1f} s of CPU time; load {os.getloadavg()[0]:.1f}")
            self.expect("after the churn", not size.differences(stage))
        self.restarts()

    def restarts(self):
        stage = self.stage
        watcher = size.Watcher(stage, size.cluster_ips(stage)["s00005"])
        older = size.snapshot(stage, "older")
        api = size.Api(stage)
        for i in range(200, 500):
            api.ask("PUT", f"{size.SLICE_PATH}/s{i:05}-x7k2p", size.slice_of(i, 77))
        for i in range(1000, 1050):
            api.ask("DELETE", f"{size.SERVICE_PATH}/s{i:05}")
            api.ask("DELETE", f"{size.SLICE_PATH}/s{i:05}-x7k2p")
        self.until("changes after a restart are there", lambda: len(size.differences(stage)), 0, 120)
        size.restart(stage)
        self.until("after kill -9 all is right", lambda: len(size.differences(stage)), 0, 120)
        size.restart(stage, older)
        self.until("after etcd was put back all is right", lambda: len(size.differences(stage)), 0, 120)
        found = watcher.end()
        say("connections meanwhile:", found)
        self.expect("connections during restarts", set(found) == {"answered"}, found)
