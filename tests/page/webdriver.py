"""A browser, spoken to by the WebDriver protocol (W3C) over HTTP: chromedriver is the
server, the standard library the client."""

import json
import subprocess
import time
import urllib.error
import urllib.request

# How long anything may take that is not waited for by its name. Generous: a machine
# that builds besides is slow, and a limit that is reached is a failure.
LIMIT_S = 60

# The protocol's name of an element's field.
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One window of a headless Chromium; a context manager."""

    def __init__(self, directory):
        self.directory = directory
        self.driver = None
        self.session = None

    def __enter__(self):
        # Port 0: the system chooses, and the driver says which.
        log = open(f"{self.directory}/chromedriver.log", "w+", encoding="utf-8")
        self.driver = subprocess.Popen(
            ["chromedriver", "--port=0", "--allowed-ips=127.0.0.1"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            port = self._port(log.name)
            self.base = f"http://127.0.0.1:{port}"
            arguments = [
                "--headless=new",
                # The sandbox wants user namespaces of its own and no root.
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--no-proxy-server",
                "--no-first-run",
                f"--user-data-dir={self.directory}/profile",
                "--window-size=1200,900",
            ]
            options = {"args": arguments}
            capabilities = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
            self.session = session["sessionId"]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_):
        if self.session:
            try:
                self.call("DELETE", f"/session/{self.session}")
            except (OSError, RuntimeError):
                pass
        self.driver.terminate()
        try:
            self.driver.wait(10)
        except subprocess.TimeoutExpired:
            self.driver.kill()
            self.driver.wait()

    def _port(self, log):
        """Waits for the driver to say where it listens."""
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            with open(log, encoding="utf-8") as said:
                for line in said:
                    if "started successfully on port" in line:
                        return int(line.rsplit(" ", 1)[1].strip().rstrip("."))
            if self.driver.poll() is not None:
                break
            time.sleep(0.05)
        with open(log, encoding="utf-8") as said:
            raise RuntimeError(f"chromedriver does not start:\n{said.read()}")

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.base + path, data, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=LIMIT_S) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode(errors="replace")) from error

    def _in(self, method, path, body=None):
        return self.call(method, f"/session/{self.session}{path}", body)

    def open(self, url):
        self._in("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        """Runs the body of a function in the page and returns what it returns."""
        return self._in("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, what, script, *arguments):
        """Waits until a script returns something true, and returns that."""
        until = time.monotonic() + LIMIT_S
        while True:
            found = self.run(script, *arguments)
            if found:
                return found
            if time.monotonic() > until:
                page = self.run("return document.body.innerText")
                raise AssertionError(f"{what}: not within {LIMIT_S} s; the page:\n{page}")
            time.sleep(0.1)

    def keys(self, text):
        """Presses keys, one after another, wherever the focus is."""
        actions = []
        for key in text:
            actions += [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        self._in("POST", "/actions", {"actions": [source]})

    def resize(self, width, height):
        """The size of what is shown, narrower than a window can be made."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", metrics)

    def command(self, name, parameters):
        """A command of the browser's own protocol."""
        body = {"cmd": name, "params": parameters}
        return self._in("POST", "/goog/cdp/execute", body)

    def errors(self):
        """What the console has of errors and warnings since it was last asked."""
        entries = self._in("POST", "/se/log", {"type": "browser"})
        return [entry for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def screenshot(self, path):
        import base64

        with open(path, "wb") as file:
            file.write(base64.b64decode(self._in("GET", "/screenshot")))
