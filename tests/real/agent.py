"""Runs inside a namespace: `serve NAME` is a pod, `ask` answers questions.

A pod says over TCP and UDP, on port 8080 (and 8081) of each of its addresses,
its name and whom it sees. Questions and answers are lines of JSON.
"""

import json
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request


def serve(name):
    def tcp(port):
        listener = socket.create_server(("::", port), family=socket.AF_INET6,
                                        dualstack_ipv6=True, backlog=1024)
        while True:
            connection, peer = listener.accept()
            try:
                connection.sendall(f"{name} {peer[0].removeprefix('::ffff:')} {port}\n".encode())
                connection.close()
            except OSError:
                pass

    def udp(port, family):
        s = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        while True:
            try:
                _, peer = s.recvfrom(2048)
                s.sendto(f"{name} {peer[0]} {port}\n".encode(), peer)
            except OSError:
                pass

    for port in (8080, 8081):
        threading.Thread(target=tcp, args=(port,)).start()
        for family in (socket.AF_INET, socket.AF_INET6):
            threading.Thread(target=udp, args=(port, family)).start()


def attempt(protocol, ip, port, timeout, source=None):
    """What one connection, or one datagram, gets: an answer or a word."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as s:
        s.settimeout(timeout)
        try:
            if source:
                s.bind((source, 0))
            s.connect((ip, port))
            if protocol == "udp":
                s.send(b"?")
            return s.recv(200).decode().strip() or "closed"
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silence"
        except ConnectionResetError:
            return "reset"
        except PermissionError:
            return "forbidden"
        except OSError as error:
            return os.strerror(error.errno).lower()


def answer(question):
    op = question.pop("op")
    if op in ("tcp", "udp"):
        times = question.pop("times", 1)
        found = {}
        for _ in range(times):
            got = attempt(op, timeout=question.get("timeout", 0.7), **{
                k: v for k, v in question.items() if k != "timeout"})
            found[got] = found.get(got, 0) + 1
            if got == "silence":
                break
        return found
    if op == "until":
        # Connects until the pod named answers: how long that took, in seconds.
        begin = question["since"]
        while True:
            now = time.monotonic()
            got = attempt("tcp", question["ip"], question["port"], 1.0)
            if got.split()[0] == question["name"]:
                return {"took": now - begin, "until": time.monotonic() - begin}
            if now - begin > 5:
                return {"took": None, "got": got}
    if op == "http":
        try:
            with urllib.request.urlopen(question["url"], timeout=3) as told:
                return {"status": told.status, "headers": dict(told.headers),
                        "body": told.read().decode()}
        except urllib.error.HTTPError as told:
            return {"status": told.code, "headers": dict(told.headers), "body": told.read().decode()}
        except OSError as error:
            return {"error": str(error)}
    raise ValueError(op)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), flush=True)
