"""A disk that waits for room: a full disk makes a voter silent, not dead."""

from node.ports import Clock, Disk
from protocol.errors import StorageFull
from storage.key_value import Batch

_ROOM_RETRY_MS = 1_000


class RoomAwaitingDisk:
    """The `Disk` of consensus and of what follows the ledger: where others are refused, it waits for room.

    A voter without room is to the others as one that is away. It comes back by itself.
    """

    def __init__(self, disk: Disk, clock: Clock) -> None:
        self._disk = disk
        self._clock = clock

    def read(self, key: bytes) -> bytes | None:
        """Return the value of a key. Raises Corruption when its bytes fail their check."""
        return self._disk.read(key)

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        """Write a batch atomically, as soon as there is room.

        Raises:
            StorageFull: the database takes no more writes until the next start.
            Unavailable, OSError, Corruption: as the disk itself.
        """
        while True:
            try:
                await self._disk.commit(batch, sync=sync)
            except StorageFull as full:
                if full.until_restart:
                    raise
                await self._clock.sleep_ms(_ROOM_RETRY_MS)
            else:
                return
