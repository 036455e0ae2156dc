"""The client's half of RFC 6455 as ComfyUI's /ws needs it: read messages, answer pings, close."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
import time
from dataclasses import dataclass

from .errors import ServerError

ACCEPT_KEY = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


@dataclass(frozen=True)
class Frame:
    """One frame off the wire."""

    final: bool
    opcode: int
    payload: bytes


def encode_frame(opcode: int, payload: bytes, mask: bytes) -> bytes:
    """Return a final frame as a client must send it: masked (RFC 6455, section 5.2)."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def decode_frame(buffer: bytes | bytearray) -> tuple[Frame, int] | None:
    """Return the first frame of `buffer` and its length in bytes; None while incomplete."""
    if len(buffer) < 2:
        return None
    size, start = buffer[1] & 0x7F, 2
    if size == 126:
        size, start = (
            (struct.unpack_from("!H", buffer, 2)[0], 4) if len(buffer) >= 4 else (0, 1 << 62)
        )
    elif size == 127:
        size, start = (
            (struct.unpack_from("!Q", buffer, 2)[0], 10) if len(buffer) >= 10 else (0, 1 << 62)
        )
    mask = b""
    if buffer[1] & 0x80:
        mask, start = bytes(buffer[start : start + 4]), start + 4
    if len(buffer) < start + size:
        return None
    payload = bytes(buffer[start : start + size])
    if mask:
        payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return Frame(bool(buffer[0] & 0x80), buffer[0] & 0x0F, payload), start + size


class WebSocket:
    """An open connection; use it as a context manager."""

    def __init__(self, host: str, port: int, path: str, timeout: float = 10.0) -> None:
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._kind = TEXT
        self._socket = socket.create_connection((host, port), timeout)
        try:
            self._shake_hands(host, port, path)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._send(CLOSE, struct.pack("!H", 1000))
        except OSError:
            pass  # the other side went first
        self._socket.close()

    def receive(self, timeout: float) -> tuple[int, bytes] | None:
        """Return the next (TEXT or BINARY, payload), or None if none came within `timeout` seconds.

        Raises: ServerError if the server closes the connection.
        """
        deadline = time.monotonic() + timeout
        while True:
            while (decoded := decode_frame(self._buffer)) is not None:
                frame, length = decoded
                del self._buffer[:length]
                if (message := self._take(frame)) is not None:
                    return message
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._socket.settimeout(left)
            try:
                self._fill()
            except TimeoutError:
                return None

    def _take(self, frame: Frame) -> tuple[int, bytes] | None:
        if frame.opcode == CLOSE:
            raise ServerError("the server closed the connection: see its log for the reason.")
        if frame.opcode == PING:
            self._send(PONG, frame.payload)
        elif frame.opcode in (CONTINUATION, TEXT, BINARY):
            if frame.opcode != CONTINUATION:
                self._kind, self._parts = frame.opcode, []
            self._parts.append(frame.payload)
            if frame.final:
                return self._kind, b"".join(self._parts)
        return None

    def _fill(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ServerError("the server dropped the connection: see its log for the reason.")
        self._buffer += data

    def _send(self, opcode: int, payload: bytes) -> None:
        self._socket.sendall(encode_frame(opcode, payload, os.urandom(4)))

    def _shake_hands(self, host: str, port: int, path: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: "
            "Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        end = self._buffer.index(b"\r\n\r\n")
        head = self._buffer[:end].decode("latin-1")
        del self._buffer[: end + 4]
        expected = base64.b64encode(hashlib.sha1((key + ACCEPT_KEY).encode()).digest()).decode()
        if " 101 " not in head.split("\r\n")[0] + " " or expected not in head:
            raise ServerError(f"the server refused a websocket: {head.splitlines()[0]}")
