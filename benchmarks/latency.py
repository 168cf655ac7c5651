"""A server far away: a proxy on loopback behind which every answer comes later."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterator

__all__ = ["delayed"]


@contextlib.contextmanager
def delayed(host: str, port: int, latency_s: float) -> Iterator[int]:
    """Give the port of a proxy to which a connection takes `latency_s`, and so does a request with its answer.

    The time of a round trip; bytes are not made fewer a second.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        open_ones: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                server = socket.create_connection((host, port))
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                open_ones.extend((client, server))
                # The handshake's round trip is put before the first bytes of the client.
                carry(client, server, latency_s / 2, latency_s)
                carry(server, client, latency_s / 2, 0.0)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            for each in (listener, *open_ones):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            thread.join()


def carry(source: socket.socket, target: socket.socket, delay_s: float, first_s: float) -> None:
    """Carry bytes from one to the other, each after its delay, in two threads that end with the connection."""
    under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
    begun = time.perf_counter()

    def take() -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(1 << 16)
            except OSError:
                data = b""
            under_way.put((max(time.perf_counter(), begun + first_s) + delay_s, data))

    def give() -> None:
        while True:
            due, data = under_way.get()
            time.sleep(max(due - time.perf_counter(), 0.0))
            try:
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
            except OSError:
                return

    for run in (take, give):
        threading.Thread(target=run, daemon=True).start()
