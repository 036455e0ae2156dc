"""Frames of RFC 6455 and a conversation over a socket pair."""

import socket

import pytest
from hosting.errors import ServerError
from hosting.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WebSocket,
    decode_frame,
    encode_frame,
)


def server_frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    """Return a short frame as a server sends it: not masked."""
    return bytes([(0x80 if final else 0) | opcode, len(payload)]) + payload


@pytest.fixture
def pair():
    """A WebSocket past its handshake and the other end of its connection."""
    ours, theirs = socket.socketpair()
    client = WebSocket.__new__(WebSocket)
    client._socket, client._buffer, client._parts, client._kind = ours, bytearray(), [], TEXT
    with theirs:
        yield client, theirs
    ours.close()


@pytest.mark.parametrize("size", [0, 5, 125, 126, 65535, 65536])
def test_frame_survives_the_wire(size):
    payload = bytes(i % 251 for i in range(size))
    wire = encode_frame(BINARY, payload, b"\x01\x02\x03\x04")
    frame, length = decode_frame(wire + b"more")
    assert (frame.opcode, frame.final, frame.payload) == (BINARY, True, payload)
    assert length == len(wire)
    assert all(decode_frame(wire[:cut]) is None for cut in {0, 1, 2, 3, len(wire) - 1})


def test_example_of_the_standard_is_read():
    masked_hello = bytes.fromhex("818537fa213d7f9f4d5158")  # RFC 6455, section 5.7
    assert decode_frame(masked_hello)[0].payload == b"Hello"


def test_parts_of_a_message_are_joined_around_a_ping(pair):
    client, server = pair
    server.sendall(server_frame(TEXT, b"one ", final=False) + server_frame(PING, b"you there?"))
    server.sendall(server_frame(CONTINUATION, b"two"))
    assert client.receive(5) == (TEXT, b"one two")
    assert decode_frame(server.recv(100))[0].opcode == PONG


def test_silence_is_none_and_keeps_what_came(pair):
    client, server = pair
    wire = server_frame(TEXT, b"late")
    server.sendall(wire[:3])
    assert client.receive(0.05) is None
    server.sendall(wire[3:])
    assert client.receive(5) == (TEXT, b"late")


@pytest.mark.parametrize("last", [server_frame(CLOSE, b""), b""])
def test_end_of_connection_is_told(pair, last):
    client, server = pair
    server.sendall(last)
    server.shutdown(socket.SHUT_WR)
    with pytest.raises(ServerError, match=r"closed|dropped"):
        client.receive(5)
