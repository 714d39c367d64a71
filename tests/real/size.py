"""Ten thousand services with a hundred thousand endpoints: start, churn, restarts."""

import http.client
import json
import shutil
import signal
import ssl
import threading
import time

from stage import address, pod_address, say

NAMESPACE = "size"
SERVICES, ENDPOINTS = 10_000, 10
CHURNED = 100  # services whose one endpoint moves
THREADS = 8
# What follows the churn: a pod of each node that answers.
MOVES = "a2", "b2"


class Api:
    """A connection to the API server that is kept."""

    def __init__(self, stage):
        context = ssl.create_default_context(cafile=stage.directory / "ca.crt")
        self.connection = http.client.HTTPSConnection(address("master"), 6443, context=context)

    def ask(self, verb, path, body=None):
        headers = {"Authorization": "Bearer admin-token", "Content-Type": "application/json"}
        self.connection.request(verb, path, json.dumps(body) if body else None, headers)
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{verb} {path}: {answer.status} {text[:300]}")
        return json.loads(text)


def service(i):
    return {"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": f"s{i:05}", "labels": {"app": f"s{i:05}", "tier": "web"}},
            "spec": {"selector": {"app": f"s{i:05}"},
                     "ports": [{"name": "web", "port": 80, "protocol": "TCP", "targetPort": 8080}]}}


def endpoint(i, e, turn=0):
    ip = f"10.{128 + (e + turn) % 96}.{i // 250}.{i % 250 + 1}"
    return {"addresses": [ip], "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": f"node-{(i + e) % 1000:04}", "zone": f"zone-{e % 3}",
            "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": f"s{i:05}-7d4b9c8f6d-{e:05}",
                          "uid": "7d3c6f0e-6c0f-4b9e-9d56-6a3ad8b7e1c4"}}


def slice_of(i, turn=0):
    name = f"s{i:05}"
    if i < CHURNED:
        pod = MOVES[turn % 2]
        endpoints = [{**endpoint(i, 0), "addresses": [pod_address(pod)], "nodeName": f"node-{pod[0]}"}]
    else:
        endpoints = [endpoint(i, e, turn) for e in range(ENDPOINTS)]
    return {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": f"{name}-x7k2p",
                         "labels": {"kubernetes.io/service-name": name, "app": name,
                                    "endpointslice.kubernetes.io/managed-by": "real.tests"}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}]}


SERVICE_PATH = f"/api/v1/namespaces/{NAMESPACE}/services"
SLICE_PATH = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"


def in_threads(work, count, threads=THREADS):
    """Calls `work(thread, i)` for each i; raises what the first failure raised."""
    failures = []

    def run(thread):
        try:
            for i in range(thread, count, threads):
                work(thread, i)
        except Exception as error:
            failures.append(error)

    started = [threading.Thread(target=run, args=(n,)) for n in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if failures:
        raise failures[0]


def fill(stage):
    stage.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}])
    apis = [Api(stage) for _ in range(THREADS)]
    begin = time.monotonic()

    def make(thread, i):
        apis[thread].ask("POST", SERVICE_PATH, service(i))
        apis[thread].ask("POST", SLICE_PATH, slice_of(i))

    in_threads(make, SERVICES)
    say(f"{SERVICES} services, {SERVICES * ENDPOINTS} endpoints made in {time.monotonic() - begin:.0f} s")


def percentiles(values):
    values = sorted(values)
    at = lambda share: values[min(len(values) - 1, int(len(values) * share))] * 1000
    return (f"n={len(values)} p50 {at(.5):.1f} ms, p90 {at(.9):.1f} ms, p99 {at(.99):.1f} ms, "
            f"max {values[-1] * 1000:.1f} ms")


def cluster_ips(stage):
    listed = Api(stage).ask("GET", SERVICE_PATH)
    return {one["metadata"]["name"]: one["spec"]["clusterIP"] for one in listed["items"]}


def churn(stage, namespace="a", seconds=60, rate=100, probed=4, probes=None):
    """Changes slices at that rate; every `probed`th of them one that is connected to.

    Each probed change moves the only endpoint of a service to another pod. From the API
    server's answer on, connections are made until one reaches the new pod; told is when
    that one began.
    """
    ips = cluster_ips(stage)
    took, looked, late = [], [], []
    probes = [] if probes is None else probes
    lock = threading.Lock()
    begin = time.monotonic() + 0.5
    from stage import Agent
    apis = [Api(stage) for _ in range(THREADS)]
    agents = [Agent(namespace) for _ in range(THREADS)]
    # From where nothing has been: a change that changes nothing is none.
    start = int(time.time()) * 2
    turns = {}

    def change(thread, n):
        due = begin + n / rate
        time.sleep(max(0, due - time.monotonic()))
        if n % probed == 0:
            # A service of its own for each thread, so that turns do not cross.
            i = thread + THREADS * (n // probed // THREADS % (CHURNED // THREADS))
        else:
            i = CHURNED + n % (SERVICES - CHURNED)
        turn = turns[i] = turns.get(i, start) + 1
        name = f"s{i:05}"
        made = slice_of(i, turn)
        stored = apis[thread].ask("PUT", f"{SLICE_PATH}/{made['metadata']['name']}", made)
        answered = time.monotonic()
        if i < CHURNED:
            told = agents[thread].ask(op="until", since=answered, ip=ips[name], port=80,
                                      name=MOVES[turn % 2])
            with lock:
                if told["took"] is None:
                    late.append((name, told))
                else:
                    took.append(max(0, told["took"]))
                    probes.append((stored["metadata"]["resourceVersion"], answered, told["took"]))
                    looked.append(told["until"])
        with lock:
            behind.append(time.monotonic() - due)

    behind = []
    in_threads(change, seconds * rate)
    whole = time.monotonic() - begin
    for agent in agents:
        agent.process.stdin.close()
    return {"changes a second": round(seconds * rate / whole, 1), "seen": percentiles(took),
            "answered": percentiles(looked), "never seen": late}


def table(stage):
    """Real servers of each virtual server, as our proxy has them."""
    listed = stage.ours("list")
    out = {}
    for one in listed["virtualServers"]:
        key = f"{one['protocol']} {one['address']}"
        out[key] = sorted(server["address"] for server in one["realServers"])
    return out


def wanted(stage):
    """What cluster IPs ought to have, from kubectl's view."""
    services = json.loads(stage.kubectl("get", "services", "-n", NAMESPACE, "-o", "json"))["items"]
    slices = json.loads(stage.kubectl("get", "endpointslices", "-n", NAMESPACE, "-o", "json"))["items"]
    of = {}
    for one in slices:
        name = one["metadata"]["labels"]["kubernetes.io/service-name"]
        of.setdefault(name, set()).update(
            f"{e['addresses'][0]}:8080" for e in one["endpoints"] or [] if e["conditions"]["ready"])
    return {f"TCP {s['spec']['clusterIP']}:80": sorted(of.get(s["metadata"]["name"], ()))
            for s in services}


def differences(stage):
    have, want = table(stage), wanted(stage)
    return [(key, want[key], have.get(key)) for key in want if have.get(key) != want[key]]


def settle(stage, seconds=60):
    """Waits until our table is what kubectl says; how long that took, or what differs."""
    begin = time.monotonic()
    while True:
        differ = differences(stage)
        if not differ:
            return time.monotonic() - begin
        if time.monotonic() - begin > seconds:
            raise RuntimeError(f"{len(differ)} differ, such as {differ[:2]}")
        time.sleep(0.2)


class Watcher:
    """Connects all the time, to see whether something is torn down."""

    def __init__(self, stage, ip, namespace="a"):
        from stage import Agent
        self.agent, self.ip, self.stop, self.found = Agent(namespace), ip, False, {}
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stop:
            for answer, n in self.agent.ask(op="tcp", ip=self.ip, port=80, times=20).items():
                answer = "answered" if answer[:3] in ("a1 ", "a2 ", "b1 ", "b2 ") else answer
                self.found[answer] = self.found.get(answer, 0) + n

    def end(self):
        self.stop = True
        self.thread.join()
        self.agent.process.stdin.close()
        return self.found


def restart(stage, restored=None):
    """Kills the API server, with etcd put back to an older copy if one is given."""
    stage.api.kill()
    if restored:
        stage.etcd.kill(signal.SIGTERM)
        shutil.rmtree(stage.directory / "etcd")
        shutil.copytree(restored, stage.directory / "etcd")
        stage.etcd.again()
        time.sleep(1)
    stage.api.again()
    stage.wait_for_api()


def snapshot(stage, name):
    """A copy of etcd's directory, made while it stands still."""
    stage.api.kill()
    stage.etcd.kill(signal.SIGTERM)
    copy = stage.directory / name
    shutil.copytree(stage.directory / "etcd", copy)
    stage.etcd.again()
    time.sleep(1)
    stage.api.again()
    stage.wait_for_api()
    return copy
