"""An S3 server for tests, and a proxy that puts faults in front of it."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = str | float | Callable[[BaseHTTPRequestHandler], None]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing-secret",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def running_server() -> Iterator[str]:
    """A moto server of its own process; yields its endpoint. What it holds is lost with it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [os.path.join(os.path.dirname(sys.executable), "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/data.json", timeout=5).read()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "the S3 server of the tests did not start"
                time.sleep(0.05)
        yield endpoint
    finally:
        server.kill()
        server.wait()


def check_keys(endpoint: str, checks: bool) -> None:
    """Have the server look at access keys, of which it knows none, or take any."""
    body = b"0" if checks else b"inf"
    headers = {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset-auth", body, headers)).read()


def refusal(code: str, status: int) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer of S3 with an error; its message and the identifier that it repeats must never reach people."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        text = f"<Error><Code>{code}</Code><Message>for AKIAEXAMPLE</Message><StringToSign>x</StringToSign></Error>"
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(text.encode())

    return answer


def stalled(seconds: float) -> Callable[[BaseHTTPRequestHandler], None]:
    """No answer for some time, then none at all."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        dropped(handler)

    return answer


def dropped(handler: BaseHTTPRequestHandler) -> None:
    """The connection ends without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


class FaultyProxy:
    """Passes requests on, but for what ``faults`` says.

    Attributes:
        faults: what happens to the next requests, in order: "pass", "cut" (half of the body), "flip" (a byte of the
            body is another), "lost" (the server gets the request, the client no answer), "unconditional" (without the
            conditions of a write), a number (of seconds that the answer takes), or a function that answers. When they
            are used up, ``then`` happens to all.
        choose: if it is given, says what happens to a request, by its method and path.
        seen: (method, path) of every request.
    """

    def __init__(self, endpoint: str) -> None:
        self.faults: list[Fault] = []
        self.then: Fault = "pass"
        self.choose: Callable[[str, str], Fault] | None = None
        self.seen: list[tuple[str, str]] = []
        proxy, upstream = self, urlsplit(endpoint).netloc
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def handle_one(self) -> None:
                with lock:
                    proxy.seen.append((self.command, self.path))
                    fault = proxy.faults.pop(0) if proxy.faults else proxy.then
                    if proxy.choose is not None:
                        fault = proxy.choose(self.command, self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if callable(fault):
                    fault(self)
                    return
                connection = http.client.HTTPConnection(upstream, timeout=30)
                headers = dict(self.headers)
                if fault == "unconditional":
                    headers = {name: value for name, value in headers.items() if not name.lower().startswith("if-")}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if isinstance(fault, float):  # the server has done it at once
                    time.sleep(fault)
                    with suppress(ConnectionError):  # whoever asked may be gone
                        self._answer(answer, content, fault)
                    return
                if fault == "lost":
                    dropped(self)
                    return
                self._answer(answer, content, fault)

            def _answer(self, answer: http.client.HTTPResponse, content: bytes, fault: Fault) -> None:
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in {"connection", "transfer-encoding", "content-length", "server", "date"}:
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                if fault == "cut":
                    self.wfile.write(content[: len(content) // 2])
                    dropped(self)
                elif fault == "flip":
                    self.wfile.write(bytes([content[0] ^ 1]) + content[1:])
                else:
                    self.wfile.write(content)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_one

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()
