"""Looks at the status page of the demo's proxy. Runs on the demo's master, started by
tests/page/run; MANIFESTS is the directory that the proxy reads its objects from."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request

from webdriver import Browser

PAGE = "http://127.0.0.1:10249/"
GRAFANA = ("10.0.94.107", 3000)

# A service whose endpoint is that of grafana on pod-5, and whose name has what markup
# is made of: a port's name is not checked by the proxy's index as an API server would.
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: late, namespace: shop}
spec:
  clusterIP: 10.0.7.7
  clusterIPs: [10.0.7.7]
  ports: [{name: http, port: 80, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: late-1, namespace: shop, labels: {kubernetes.io/service-name: late}}
addressType: IPv4
endpoints: [{addresses: [10.1.65.5], conditions: {ready: true}}]
ports: [{name: http, port: 3000, protocol: TCP}]
"""

ROWS = """return [...document.querySelectorAll("#service-list > details")].map((row) => row.querySelector(".name").textContent)"""
FLOWS = """return [...document.querySelectorAll("#flow-list tr")].map((row) => [...row.children].map((cell) => cell.textContent))"""


def get(host, port):
    """One request, the answer's last line."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{host}:{port}/", timeout=30) as answer:
        return answer.read().decode()


class Traffic:
    """Connections one after another until it is left."""

    def __enter__(self):
        self.stop = threading.Event()
        self.failure = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        return self

    def _run(self):
        try:
            while not self.stop.is_set():
                get(*GRAFANA)
        except OSError as error:
            self.failure = error

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        if self.failure:
            raise self.failure


def set_value(browser, field, value):
    """What typing does, in one step."""
    browser.run(
        """const field = document.getElementById(arguments[0]);
        field.value = arguments[1];
        field.dispatchEvent(new Event("input", { bubbles: true }));""",
        field,
        value,
    )


def services(browser):
    browser.wait(
        "the services of the demo",
        f"const names = (() => {{ {ROWS} }})(); return names.includes('monitoring/grafana:http') "
        "|| names.some((name) => name.includes('grafana'))",
    )
    before = browser.run(ROWS)
    assert not any("shop/late" in name for name in before), before
    assert browser.run("return document.getElementById('health').textContent") == "ready"

    path = os.path.join(os.environ["MANIFESTS"], "late.yaml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(SERVICE)
    browser.wait("a row for a Service that comes", f"return (() => {{ {ROWS} }})().includes('shop/late:http')")
    get("10.0.7.7", 80)
    os.remove(path)
    browser.wait(
        "no row for a Service that has gone",
        f"return !(() => {{ {ROWS} }})().includes('shop/late:http')",
    )


def service_filter(browser):
    everything = browser.run(ROWS)
    # By the keyboard alone.
    browser.run("document.activeElement.blur()")
    browser.keys("/")
    focus = browser.run("return document.activeElement.id")
    assert focus == "service-filter", focus
    browser.keys("GRAF")
    browser.wait(
        "the filter leaves one kind",
        f"const rows = (() => {{ {ROWS} }})(); "
        "return rows.length > 0 && rows.every((name) => name.includes('grafana'))",
    )
    assert len(browser.run(ROWS)) < len(everything)
    browser.keys("zzz")
    browser.wait("nothing fits", "return !document.getElementById('service-none').hidden")
    set_value(browser, "service-filter", "")
    assert browser.run(ROWS) == everything


def plots(browser):
    points = """const line = document.querySelector(arguments[0] + " polyline");
        const points = (line?.getAttribute("points") ?? "").split(" ").filter(Boolean);
        const heights = new Set(points.map((point) => point.split(",")[1]));
        return points.length > 1 && heights.size > 1"""
    with Traffic():
        browser.wait("the plot of new flows shows traffic", points, "#new-plot")
        browser.wait(
            "the plot of a service shows traffic",
            """const row = [...document.querySelectorAll("#service-list > details")]
                .find((row) => row.querySelector(".name").textContent.includes("grafana"));
            const points = (row?.querySelector("polyline")?.getAttribute("points") ?? "").split(" ");
            return new Set(points.map((point) => point.split(",")[1])).size > 1""",
        )
        browser.wait(
            "a rate is told",
            "return /^[0-9.]+ *k?\\/s$/.test(document.getElementById('new-now').textContent) "
            "&& !document.getElementById('new-now').textContent.startsWith('0 ')",
        )
    # Real servers fold out, and stay so while the page updates.
    browser.run(
        """[...document.querySelectorAll("#service-list > details")]
        .find((row) => row.querySelector(".name").textContent.includes("grafana"))
        .querySelector("summary").click()"""
    )
    folded = """const row = document.querySelector("#service-list > details[open] .inside");
        return row ? row.textContent : "" """
    browser.wait("real servers", f"return (() => {{ {folded} }})().includes('10.1.65.6:3000')")
    before = browser.run("return document.getElementById('services').dataset.seen = performance.now()")
    browser.wait("some updates", "return performance.now() > arguments[0] + 5000", before)
    assert "10.1.65.6:3000" in browser.run(folded)


def flows(browser):
    with socket.create_connection(GRAFANA, timeout=30) as one:
        client = "%s:%d" % one.getsockname()
        has = f"return (() => {{ {FLOWS} }})().some((row) => row[1] === arguments[0])"
        browser.wait("the flow is shown", has, client)
        set_value(browser, "flow-client", client)
        browser.wait(
            "the filter leaves it alone",
            f"const rows = (() => {{ {FLOWS} }})(); return rows.length === 1 && rows[0][1] === arguments[0]",
            client,
        )
        set_value(browser, "flow-state", "udp")
        browser.wait("another state leaves none", "return !document.getElementById('flow-none').hidden")
        set_value(browser, "flow-state", "established")
        browser.wait("its state leaves it", has, client)
        set_value(browser, "flow-client", "10.1.15")
        browser.wait(
            "what is no address is said",
            "return document.getElementById('flow-error').textContent.startsWith('Client:')",
        )
        set_value(browser, "flow-client", "")
        set_value(browser, "flow-state", "")
        for order in ("bytes", "age", "service", "realServer", "state", "client"):
            set_value(browser, "flow-sort", order)
            browser.wait(f"by {order}", has, client)


def drops(browser):
    # An address that no service has: dropped and counted.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.sendto(b"anybody?", ("10.0.250.250", 9))
    browser.wait(
        "a drop is counted",
        "return document.getElementById('dropped').textContent.includes('unknown address')",
    )


def node(browser):
    browser.wait("what check says", "return document.querySelectorAll('#check-list tr').length > 10")
    rows = browser.run(
        """return [...document.querySelectorAll("#check-list tr")]
        .map((row) => [...row.children].map((cell) => cell.textContent))"""
    )
    found = {name: (result, what) for result, name, what, _ in rows}
    for name in ("device", "healthz", "metrics"):
        assert found[name][0] == "ok" and "belongs to this proxy" in found[name][1], found
    assert found["routes"][0] == "ok", found
    order = [("failure", "warning", "ok").index(row[0]) for row in rows]
    assert order == sorted(order), rows
    # Whatever is not well says what mends it.
    assert all(row[3] for row in rows if row[0] != "ok"), rows
    counted = browser.run("return document.getElementById('check-count').textContent")
    assert f"{len([row for row in rows if row[0] == 'ok'])} ok" in counted, counted


def narrow_and_dark(browser):
    browser.resize(360, 740)
    overflow = "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
    assert browser.run(overflow) <= 0, "a narrow screen scrolls sideways"
    light = browser.run("return getComputedStyle(document.body).backgroundColor")
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.command("Emulation.setEmulatedMedia", {"features": [feature]})
    dark = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert light != dark, light


def guard(browser):
    """A page of another origin reads nothing, by whatever name it comes."""
    with socket.create_connection(("127.0.0.1", 10249), timeout=30) as one:
        one.sendall(b"GET /api/v1/flows HTTP/1.0\r\nHost: evil.example\r\n\r\n")
        assert one.recv(100).split()[1] == b"403"
    # And what runs as a name in the page is text.
    assert browser.run("return document.querySelectorAll('script').length") == 1


def main():
    program = sys.argv[1]
    top = subprocess.run(
        [program, "top", "--admin-socket", os.environ["ADMIN_SOCKET"]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    assert top.returncode == 2 and b"needs a terminal" in top.stderr, top
    with tempfile.TemporaryDirectory() as directory, Browser(directory) as browser:
        browser.open(PAGE)
        try:
            for step in (services, service_filter, plots, flows, drops, node, guard, narrow_and_dark):
                step(browser)
                errors = browser.errors()
                assert not errors, f"the console has {errors}"
                print(f"page: {step.__name__} ok", flush=True)
        except BaseException:
            if kept := os.environ.get("PAGE_SCREENSHOT"):
                browser.screenshot(kept)
            raise
    print("page: all as it should be")


main()
