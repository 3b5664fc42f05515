"""A TCP relay before a server: it can be shut and opened again, and lose an answer whose request was carried out."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress


class Relay:
    """Forwards connections to `port` of this machine.

    Args:
        port: Of the server behind.
        connections: After so many it is shut; None never.
    """

    def __init__(self, port: int, connections: int | None = None) -> None:
        self._target, self._left = port, connections
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self._lost: tuple[bytes, Callable[[], None]] | None = None
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def open(self) -> None:
        """Listens again, on the same port, for good."""
        self._left = None
        self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        # A blocked accept holds the socket open until it is shut down.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def lose_answer(self, request: bytes, instead: Callable[[], None]) -> None:
        """Once: of the next request that holds these bytes the server's answer is lost, and `instead` called."""
        self._lost = (request, instead)

    def _accept(self, listener: socket.socket) -> None:
        while self._left is None or self._left > 0:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if self._left is not None:
                self._left -= 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()
        self.close()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            met: list[Callable[[], None]] = []
            back = threading.Thread(target=self._answer, args=(server, client, met), daemon=True)
            back.start()
            with suppress(OSError):
                while block := client.recv(65536):
                    if self._lost is not None and self._lost[0] in block:
                        met.append(self._lost[1])
                        self._lost = None
                    server.sendall(block)
                server.shutdown(socket.SHUT_WR)
            back.join()

    def _answer(self, server: socket.socket, client: socket.socket, met: list[Callable[[], None]]) -> None:
        with suppress(OSError):
            while block := server.recv(65536):
                if met:
                    met.pop()()
                    break
                client.sendall(block)
            client.shutdown(socket.SHUT_RDWR)
