"""A proxy between a client and a real server (S3, MLflow) that forwards real bytes and, when told to, breaks things."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass
class Fault:
    """What happens to the requests of ``method`` whose target matches ``path``: to so many of them, after some others.

    ``before`` is called before the request goes on. ``status`` and ``code`` answer in the server's place. The bytes of
    an answer's body pass through ``change``; after ``cut`` of them the connection breaks. ``cut_request`` breaks it
    after so many bytes of the request's body. ``lose_answer`` lets the server work and the client never know.
    ``drop_header`` keeps a header of the request from the server.
    """

    method: str = "GET"
    path: str = ""
    times: int = 1
    skip: int = 0
    before: Callable[[], object] | None = None
    status: int = 0
    code: str = ""
    change: Callable[[bytes], bytes] | None = None
    shorten: int | None = None
    cut: int | None = None
    cut_request: int | None = None
    lose_answer: bool = False
    drop_header: str = ""
    silent: float = 0.0

    def meets(self, method: str, target: str) -> bool:
        """Whether it applies to this request; counts."""
        if self.times <= 0 or method != self.method or not re.search(self.path, target):
            return False
        self.skip -= 1
        if self.skip >= 0:
            return False
        self.times -= 1
        return True


class FaultyProxy:
    """Listens on ``uri``; ``seen`` holds every request as (method, target)."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (str(parts.hostname), int(parts.port or 80))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str]] = []
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def inject(self, **fault: object) -> None:
        """Add a :class:`Fault`."""
        self.faults.append(Fault(**fault))  # type: ignore[arg-type]

    def count(self, method: str, path: str = "") -> int:
        """How many such requests there were."""
        return sum(seen == method and re.search(path, target) is not None for seen, target in self.seen)

    def settle(self) -> None:
        """Return when every connection made until now has ended, also those of processes that were killed."""
        with socket.create_connection(self._server.getsockname()) as last:  # accepted after all that came before it
            last.shutdown(socket.SHUT_WR)
            last.recv(1)
        deadline = time.monotonic() + 30
        while self._clients:
            assert time.monotonic() < deadline, "a connection through the proxy does not end"
            time.sleep(0.01)

    def close(self) -> None:
        """Be down from now on, in the middle of whatever goes on."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for client in [*self._clients]:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._clients.add(client)
                threading.Thread(target=self._handle, args=(client,), daemon=True).start()

    def _handle(self, client: socket.socket) -> None:
        try:
            with client, contextlib.suppress(OSError):
                self._pass_on(client)
        finally:
            self._clients.discard(client)

    def _pass_on(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            received = client.recv(65536)
            if not received:
                return
            head += received
        method, target = head.split(b" ", 2)[:2]
        with self._lock:
            request = (method.decode(), target.decode())
            self.seen.append(request)
            fault = next((fault for fault in self.faults if fault.meets(*request)), Fault())
        self._forward(client, head, fault)

    def _forward(self, client: socket.socket, head: bytes, fault: Fault) -> None:
        if fault.before:
            fault.before()
        if fault.silent:
            time.sleep(fault.silent)
            return
        if fault.status:
            client.sendall(_answer(fault.status, fault.code))
            _drain(client)
            return
        if fault.drop_header:
            head = re.sub(rb"(?i)\r\n%s:[^\r]*" % fault.drop_header.encode(), b"", head)
        with socket.create_connection(self._upstream) as server:
            server.sendall(head)
            sending = threading.Thread(target=_pump, args=(client, server, fault.cut_request), daemon=True)
            sending.start()
            answer = b"".join(iter(lambda: server.recv(65536), b"")) if _is_changed(fault) else None
            if answer is None:
                while received := server.recv(65536):
                    client.sendall(received)
            else:
                _send_broken(client, answer, fault)


def _is_changed(fault: Fault) -> bool:
    return fault.change is not None or fault.cut is not None or fault.shorten is not None or fault.lose_answer


def _send_broken(client: socket.socket, answer: bytes, fault: Fault) -> None:
    head, _, body = answer.rpartition(b"HTTP/1.1 ")[2].partition(b"\r\n\r\n")  # after any "100 Continue"
    body = fault.change(body) if fault.change else body
    if fault.shorten is not None:  # the length that is told is that of what comes
        body = body[: fault.shorten]
        head = re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % len(body), head)
    if not fault.lose_answer:
        client.sendall(b"HTTP/1.1 " + head + b"\r\n\r\n" + body[: fault.cut])
    if fault.cut is not None or fault.lose_answer:
        time.sleep(0.05)  # for what was sent to arrive before the reset does
        _reset(client)


def _pump(source: socket.socket, target: socket.socket, cut: int | None) -> None:
    passed = 0
    with contextlib.suppress(OSError):
        while received := source.recv(65536):
            target.sendall(received)
            passed += len(received)
            if cut is not None and passed >= cut:
                _reset(source)
                target.shutdown(socket.SHUT_RDWR)
                return


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)  # wakes the other thread's recv, which would keep the connection open
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _drain(client: socket.socket) -> None:
    """Take what is still being sent: closing on it would reset the connection before the answer is read."""
    client.shutdown(socket.SHUT_WR)
    client.settimeout(1.0)
    while client.recv(65536):
        pass


def _answer(status: int, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by a test</Message></Error>".encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close"
    return head.encode() + b"\r\n\r\n" + body


@contextlib.contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """A proxy for the length of a test."""
    proxy = FaultyProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
