"""Frames waiting to be written to one stream, bounded in number and bytes."""

from collections import deque

import trio

from protocol import limits


class Outbox:
    """A queue of frames with one reader, its writer task. `offer` drops when full, `put` waits."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._filled = trio.Event()
        self._room = trio.Event()
        self._waits_for_room = False

    def offer(self, frame: bytes) -> bool:
        """Queue a frame unless the queue is full. Never blocks."""
        if self._is_full(frame):
            return False
        self._frames.append(frame)
        self._bytes += len(frame)
        self._filled.set()
        return True

    async def put(self, frame: bytes) -> None:
        """Queue a frame as soon as there is room."""
        while not self.offer(frame):
            self._waits_for_room = True
            await self._room.wait()

    async def take(self) -> bytes:
        """Wait for frames and return those at the head joined, up to `limits.WRITE_COALESCE_BYTES` or one frame."""
        while not self._frames:
            self._filled = trio.Event()
            await self._filled.wait()
        taken = [self._frames.popleft()]
        size = len(taken[0])
        while self._frames and size + len(self._frames[0]) <= limits.WRITE_COALESCE_BYTES:
            taken.append(self._frames.popleft())
            size += len(taken[-1])
        self._bytes -= size
        if self._waits_for_room:
            self._waits_for_room = False
            self._room.set()
            self._room = trio.Event()
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def _is_full(self, frame: bytes) -> bool:
        return (
            len(self._frames) >= limits.PEER_QUEUE_MESSAGES_MAX
            or self._bytes + len(frame) > limits.PEER_QUEUE_BYTES_MAX
        )
