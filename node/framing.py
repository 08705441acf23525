"""What travels on our streams: frames, and the messages inside them.

A frame is `length[4, big endian] ‖ message`, the message canonical (`protocol.codec`), 1 to `MESSAGE_BYTES_MAX` bytes.

    /carechain/consensus/1, /carechain/heartbeat/1,
    /carechain/messages/1, /carechain/chunks/1       persistent, one per peer and direction
        opener    Hello, then Message and Call …
        acceptor  Hello, then Answer and Failure …
    /carechain/bulk/1                                one stream per fetch
        opener    Fetch
        acceptor  Piece …, then End or Failure

Several, so that nothing short waits behind something large: `peer_session.PROTOCOL_OF_CHANNEL` says which channel has its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from protocol import limits
from protocol.codec import Size, encode_large, wire
from protocol.errors import Malformed
from protocol.identifiers import NetworkId

LENGTH_BYTES = 4
FETCH_BYTES_MAX = 16 * limits.KIB
"""What a fetch asks with is a few numbers: of many streams, each may not hold a message of the longest kind."""
BODY_BYTES_MAX = limits.MESSAGE_BYTES_MAX - limits.KIB
"""The largest body a caller may pass: the message around it (tag, channel, request id) takes less than 1 KiB."""
TEXT_CHARACTERS_MAX = 500

Channel = Annotated[str, Size(1, 64)]
Network = Annotated[NetworkId, Size(32)]
Text = Annotated[str, Size(0, TEXT_CHARACTERS_MAX)]


@wire("net.hello")
@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of each side on a persistent stream. Another network id ends the conversation."""

    network: Network
    addresses: Annotated[tuple[Annotated[str, Size(1, 200)], ...], Size(0, limits.PEER_ADDRESSES_MAX)]
    """Multiaddrs the sender listens on, for the receiver's address book."""


@wire("net.message")
@dataclass(frozen=True, slots=True)
class Message:
    """A message that has no answer."""

    channel: Channel
    body: bytes


@wire("net.call")
@dataclass(frozen=True, slots=True)
class Call:
    """A request; `request` is unique among the open calls of its stream."""

    request: int
    channel: Channel
    body: bytes


@wire("net.answer")
@dataclass(frozen=True, slots=True)
class Answer:
    """What the handler of the call returned."""

    request: int
    body: bytes


@wire("net.failure")
@dataclass(frozen=True, slots=True)
class Failure:
    """No answer. `retry`: the peer cannot now (busy, nobody serves the channel yet); else its handler refused."""

    request: int
    retry: bool
    text: Text


@wire("net.fetch")
@dataclass(frozen=True, slots=True)
class Fetch:
    """Asks for a stream of pieces."""

    network: Network
    channel: Channel
    body: bytes


@wire("net.piece")
@dataclass(frozen=True, slots=True)
class Piece:
    """One item of the stream."""

    body: bytes


@wire("net.end")
@dataclass(frozen=True, slots=True)
class End:
    """The stream is complete. A stream that ends without it was cut off."""


Request = Hello | Message | Call
Reply = Hello | Answer | Failure
BulkReply = Piece | End | Failure


def frame(value: Request | Reply | BulkReply | Fetch) -> bytes:
    """Return the framed encoding of a message.

    Raises:
        ValueError: larger than `limits.MESSAGE_BYTES_MAX`; callers check bodies against `BODY_BYTES_MAX` first.
    """
    data = encode_large(value)
    if len(data) > limits.MESSAGE_BYTES_MAX:
        raise ValueError(f"a message of {len(data)} bytes is over the limit of {limits.MESSAGE_BYTES_MAX}")
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


class FrameBuffer:
    """Cuts received bytes into frames. Holds at most one incomplete frame and what was fed last."""

    def __init__(self, frame_bytes_max: int = limits.MESSAGE_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self._frame_bytes_max = frame_bytes_max

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take received bytes and yield the frames now complete, without their length. Exhaust it before the next call.

        Raises:
            Malformed: a frame announces no bytes, or more than the limit.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= LENGTH_BYTES:
                size = int.from_bytes(buffer[start : start + LENGTH_BYTES], "big")
                if not 0 < size <= self._frame_bytes_max:
                    raise Malformed(f"a frame of {size} bytes is outside 1..{self._frame_bytes_max}")
                end = start + LENGTH_BYTES + size
                if len(buffer) < end:
                    break
                with memoryview(buffer) as view:  # a slice of the buffer itself would be one copy more
                    piece = bytes(view[start + LENGTH_BYTES : end])
                yield piece
                start = end
        finally:
            del buffer[:start]
