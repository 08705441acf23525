"""A process that does nothing but verify signatures: `python -P -m node.signature_process`.

A daemon that catches up verifies more than one interpreter can: its lock is wanted again after every signature. So it
keeps a few of these meanwhile (`node.signature_processes`), which know no keys, no files and no network.

    standard input    length[4, big endian] ‖ claims, each key[32] ‖ signature[64] ‖ length[4] ‖ signed bytes
    standard output   one byte for each: 1 when all of its claims hold, else 0

It ends with its input, and lets whatever else the machine has to do go first.
"""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from protocol import claims
from protocol.claims import Claim
from protocol.identifiers import PublicKey

ALL_HOLD, NOT_ALL = b"\x01", b"\x00"
_LENGTH_BYTES = 4
_KEY, _SIGNATURE = 32, 96
"""Where they end."""
_HEAD_BYTES = _SIGNATURE + _LENGTH_BYTES
_NICENESS = 5


def request(claimed: Iterable[Claim]) -> bytes:
    """Return claims as one request.

    Raises:
        ValueError: a key or signature is of no lawful length: what it claims does not hold, and would shift what follows it.
    """
    parts = [b""]
    for key, form, signature in claimed:
        if len(key) != _KEY or len(key) + len(signature) != _SIGNATURE:
            raise ValueError("a claim of unlawful length")
        parts += (key, signature, len(form).to_bytes(_LENGTH_BYTES, "big"), form)
    parts[0] = sum(map(len, parts)).to_bytes(_LENGTH_BYTES, "big")
    return b"".join(parts)


def serve(source: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more; one that is cut off has nobody left who waits for it."""
    while len(head := source.read(_LENGTH_BYTES)) == _LENGTH_BYTES:
        size = int.from_bytes(head, "big")
        body = source.read(size)
        if len(body) != size:
            return
        answers.write(ALL_HOLD if claims.hold(_claims(body)) else NOT_ALL)


def _claims(body: bytes) -> Iterator[Claim]:
    at = 0
    while at < len(body):
        start = at + _HEAD_BYTES
        end = start + int.from_bytes(body[at + _SIGNATURE : start], "big")
        key, signature = body[at : at + _KEY], body[at + _KEY : at + _SIGNATURE]
        yield Claim(PublicKey(key), body[start:end], signature)
        at = end


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # an interrupt at the terminal is for the daemon, which ends this one
    os.nice(_NICENESS)
    # Unbuffered: what the daemon did not live to read must not be flushed at the end.
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, io.FileIO(sys.stdout.fileno(), "wb", closefd=False))
