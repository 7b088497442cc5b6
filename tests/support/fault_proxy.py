"""Trouble on the way to a real S3 server: a reverse proxy on the loopback that a test tells which requests go wrong.

Requests pass unchanged, the signed Host header included, so servers that check signatures accept them. Bodies are held
in memory. Every connection has a thread; all have ended when the context ends.
"""

import contextlib
import enum
import http.client
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Fault(enum.Enum):
    """Names what a request meets. Only those that CUT and SLOW meet reach the server and take effect there."""

    SLOW_DOWN = enum.auto()
    """503 SlowDown, S3's answer to too many requests."""
    INTERNAL = enum.auto()
    """500 InternalError."""
    DENIED = enum.auto()
    """403 AccessDenied."""
    SKEWED = enum.auto()
    """403 RequestTimeTooSkewed, to one whose clock is off by more than a quarter of an hour."""
    RESET = enum.auto()
    """The connection is reset (TCP RST) before any answer."""
    CUT = enum.auto()
    """The connection is reset after all headers and half of the body; before the headers where there is no body."""
    SLOW = enum.auto()
    """The headers come at once, the body in 8 pieces, spread evenly over `slow_seconds`."""
    HANG = enum.auto()
    """No answer until the proxy ends."""


Plan = Callable[[str, str, int], Fault | None]
"""(method, path, attempt) -> what goes wrong. path: as on the wire, percent-encoded and with the query. attempt: how
often this method and path were asked for before. Called by one thread at a time, in the order of `requests`."""

_REFUSALS = {
    Fault.SLOW_DOWN: (503, "SlowDown", "Please reduce your request rate."),
    Fault.INTERNAL: (500, "InternalError", "We encountered an internal error. Please try again."),
    Fault.DENIED: (403, "AccessDenied", "Access Denied"),
    Fault.SKEWED: (
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the current time is too large.",
    ),
}

_OF_ONE_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
"""Headers that concern a connection, of which there are two here, and not the request."""


@contextlib.contextmanager
def fault_proxy(endpoint_url: str, plan: Plan, slow_seconds: float = 2.0) -> Iterator["FaultProxy"]:
    """Stands before the http server at `endpoint_url`. Whatever `plan` raises, the end of the context raises."""
    proxy = FaultProxy(endpoint_url, plan, slow_seconds)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield proxy
    finally:
        proxy.end()
        thread.join()
    if proxy.errors:
        raise proxy.errors[0]


class FaultProxy(ThreadingHTTPServer):
    """Holds what `fault_proxy` gives: `url`, the endpoint for clients, and `requests`, what they asked for.

    num_bytes: of the bodies that the server answered with, by path.
    """

    daemon_threads = False  # server_close() waits for no others
    request_queue_size = 1024  # of 5, its default, clients with more connections lose some for a second

    def __init__(self, endpoint_url: str, plan: Plan, slow_seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(endpoint_url).netloc
        self.plan = plan
        self.slow_seconds = slow_seconds
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.errors: list[BaseException] = []
        self.ended = threading.Event()
        self.num_bytes: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._seen: Counter[tuple[str, str]] = Counter()
        self._connections: set[socket.socket] = set()

    @property
    def requests(self) -> Counter[tuple[str, str]]:
        """Count how often each (method, path) was asked for up to now, in the order of first requests."""
        with self._lock:
            return self._seen.copy()

    def fault(self, method: str, path: str) -> Fault | None:
        """Return what the next request of this method and path meets."""
        with self._lock:
            attempt = self._seen[method, path]
            self._seen[method, path] += 1
            return self.plan(method, path, attempt)

    def end(self) -> None:
        """Ends all threads: those that wait for the next request, that hang, and that send slowly."""
        self.shutdown()  # from here on, connections are only removed
        self.ended.set()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # the client has gone
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Keeps the connection until `shutdown_request`."""
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closes the connection alone: the shutdown of the base class would send a FIN ahead of a reset."""
        with self._lock:
            self._connections.discard(request)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keeps what a test should know of; clients that go away early are no error."""
        error = sys.exception()
        if error and not isinstance(error, ConnectionError):
            self.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    """Of one connection, for one request after another."""

    server: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the body of a small answer waits 40 ms for the headers' acknowledgement

    def answer(self) -> None:
        request_body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault(self.command, self.path)
        if fault is Fault.RESET:
            self.reset()
        elif fault is Fault.HANG:
            self.server.ended.wait()
            self.close_connection = True
        elif fault in _REFUSALS:
            self.refuse(*_REFUSALS[fault])
        else:
            self.forward(request_body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def forward(self, request_body: bytes, fault: Fault | None) -> None:
        """Asks the server and passes its answer on, or so much of it as the fault leaves."""
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_ONE_HOP}
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        with contextlib.closing(upstream):
            upstream.request(self.command, self.path, request_body, headers | {"Connection": "close"})
            answer = upstream.getresponse()
            body = answer.read()
        self.server.num_bytes[self.path] += len(body)
        if fault is Fault.CUT and not body:
            self.reset()
            return
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _OF_ONE_HOP:
                self.send_header(name, value)
        if "Content-Length" not in answer.headers and answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault is Fault.CUT:
            self.wfile.write(body[: len(body) // 2])
            self.reset()
        elif fault is Fault.SLOW:
            for k in range(8):
                self.server.ended.wait(self.server.slow_seconds / 8)
                self.wfile.write(body[k * len(body) // 8 : (k + 1) * len(body) // 8])
        else:
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        """Answers as S3 words its refusals."""
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    def reset(self) -> None:
        """Lets the close of this connection, which comes next, send a RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Says nothing on standard error."""
