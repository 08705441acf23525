"""A connection after py-libp2p's Noise handshake: messages sealed and opened with the keys that it agreed on.

    message = length[2, big endian] ‖ ChaCha20-Poly1305 ciphertext of at most 65,519 bytes     (libp2p Noise, Noise 12)

The handshake, its proof of who the peer is, and both cipher states with their counters stay the library's. Stock reads a
message in two calls through five layers, which costs more than to open it: here one system call takes what has arrived,
and whole messages are opened from there.
"""

import os
from collections.abc import Sequence
from typing import Any

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.security.secure_session import SecureSession

from protocol import limits

PLAINTEXT_BYTES_MAX = 65_535 - 16
_LENGTH_BYTES = 2
_RECEIVE_BYTES = 4 * 64 * limits.KIB
"""Taken from the socket at once: four messages, so that one which is cut off at the end is rare."""


class NoiseSession(SecureSession):  # type: ignore[misc]  # libp2p is untyped here, as in libp2p_kit
    """What the muxer reads from and writes to. One reader; writers take turns by themselves."""

    def __init__(self, stock: Any) -> None:
        """Take over from the session that the handshake returned; nothing has been read from it."""
        super().__init__(
            local_peer=stock.local_peer,
            local_private_key=stock.local_private_key,
            remote_peer=stock.remote_peer,
            remote_permanent_pubkey=stock.remote_permanent_pubkey,
            is_initiator=stock.is_initiator,
            conn=stock.conn,
        )
        self.negotiated_security_protocol = stock.negotiated_security_protocol
        noise = stock.conn.noise_state.noise_protocol
        self._sealing, self._opening = noise.cipher_state_encrypt, noise.cipher_state_decrypt
        self._stream: trio.SocketStream = stock.conn.read_writer.read_write_closer.stream.stream
        self._received = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._received)
        self._start = self._end = 0
        self._left = b""

    def next_message(self) -> bytes | None:
        """Return the plaintext of the next message that has arrived whole, else None.

        Raises:
            InvalidTag: (of `cryptography`) it was not sealed by the peer of the handshake, or not in this place.
        """
        start = self._start + _LENGTH_BYTES
        if start > self._end:
            return None
        stop = start + int.from_bytes(self._view[start - _LENGTH_BYTES : start], "big")
        if stop > self._end:
            return None
        plaintext: bytes = self._opening.decrypt_with_ad(None, self._view[start:stop])
        self._start = stop
        return plaintext

    async def receive(self) -> bool:
        """Wait for bytes of the peer; False when it has closed the connection.

        Nobody proves that it was the peer who closed: what ends without its own farewell is told as broken above.

        Raises:
            ConnectionClosedError: it is broken, was closed here, or ended within a message.
        """
        rest = self._end - self._start
        # The longest message fits behind what is left of it: there is always room for more.
        self._view[:rest] = bytes(self._view[self._start : self._end])
        self._start, self._end = 0, rest
        try:
            count = await self._stream.socket.recv_into(self._view[rest:])
        except (OSError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError(type(error).__name__, transport="tcp") from error
        self._end += count
        if not count and rest:
            raise ConnectionClosedError(
                f"the connection ended within a message, after {rest} bytes", transport="tcp"
            )
        return count > 0

    def take_left(self) -> bytes:
        """Return what `read` has opened and not handed out."""
        left, self._left = self._left, b""
        return left

    async def read(self, n: int | None = None) -> bytes:
        """Return at least one and at most `n` bytes, while the muxer is negotiated.

        Raises:
            ConnectionClosedError: the connection ended.
        """
        while not self._left:
            message = self.next_message()
            if message is not None:
                self._left = message
            elif not await self.receive():
                raise ConnectionClosedError("the peer closed the connection", transport="tcp")
        taken, self._left = (self._left, b"") if n is None else (self._left[:n], self._left[n:])
        return taken

    async def write(self, data: bytes) -> None:
        """Seal and send bytes, in as many messages as they take, while the muxer is negotiated."""
        places = range(0, len(data), PLAINTEXT_BYTES_MAX)
        await self.send_rest(self.send_now([data[at : at + PLAINTEXT_BYTES_MAX] for at in places]))

    def send_now(self, messages: Sequence[bytes]) -> bytes:
        """Seal messages of at most `PLAINTEXT_BYTES_MAX` bytes each and send what the socket takes at once.

        Returns what it did not take: `send_rest` must follow with it before anything else.

        Raises:
            NoiseMaxNonceError: (of `noise`) no number is left for another message (Noise 5.1), which nobody lives to see.
                Some may be sealed and lost: the connection is of no more use.
        """
        pieces: list[bytes] = []
        for message in messages:
            sealed = self._sealing.encrypt_with_ad(None, message)
            pieces += (len(sealed).to_bytes(_LENGTH_BYTES, "big"), sealed)
        wire = b"".join(pieces)
        try:
            # trio's own would wait for a turn of the event loop, which a small frame cannot afford.
            sent = os.write(self._stream.socket.fileno(), wire)
        except OSError:
            return wire  # full, or broken: the way that waits tells which
        return wire[sent:] if sent < len(wire) else b""

    async def send_rest(self, rest: bytes) -> None:
        """Send sealed bytes. Cancelled half way, the connection is of no more use.

        Raises:
            ConnectionClosedError: the connection is broken, or was closed here.
        """
        try:
            await self._stream.send_all(rest)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError(type(error).__name__, transport="tcp") from error
