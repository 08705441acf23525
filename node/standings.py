"""How each member has answered our challenges: rows that survive a restart, so that a liar gains nothing by ours."""

from collections.abc import Callable

from node.ports import Clock, Disk
from protocol import codec
from protocol.errors import Malformed
from protocol.identifiers import NodeId
from protocol.possession import Outcome, Standing
from storage.key_value import Batch, KeyValue
from storage.keyspace import STANDING, prefix_range


class Standings:
    """Owns the rows of `keyspace.STANDING`. `distrusted` are the members whose replicas count as missing."""

    def __init__(self, rows: KeyValue, disk: Disk, clock: Clock) -> None:
        self._disk = disk
        self._clock = clock
        self._known = _read(rows)
        self.distrusted = self._distrusted()

    def of(self, node: NodeId) -> Standing:
        """Return a member's standing."""
        return self._known.get(node, Standing())

    async def note(self, node: NodeId, outcome: Outcome) -> bool:
        """Note what became of a challenge; return whether the member is distrusted from now on and was not before."""
        before = self.of(node)
        after = before.after(outcome, self._clock.now_ms())
        self._known[node] = after
        self.distrusted = self._distrusted()
        batch = Batch()
        batch.put(STANDING + node, codec.encode(after))
        # Not synchronised: what a crash forgets is asked again.
        await self._disk.commit(batch, sync=False)
        return before.is_trusted and not after.is_trusted

    def problems(self, name: Callable[[NodeId], str]) -> tuple[str, ...]:
        """Return a sentence about each distrusted member, sorted; `name` tells what a member is called."""
        return tuple(
            f"{who} could not prove that it has what it says to store: its replicas count as missing until it does; ask it to "
            "check its disk and its program"
            for who in sorted(map(name, self.distrusted))
        )

    def _distrusted(self) -> frozenset[NodeId]:
        return frozenset(node for node, standing in self._known.items() if not standing.is_trusted)


def _read(rows: KeyValue) -> dict[NodeId, Standing]:
    known = {}
    for key, row in rows.scan(*prefix_range(STANDING)):
        try:
            known[NodeId(key[len(STANDING) :])] = codec.decode(row, Standing)
        except Malformed:
            continue  # of another version: the member begins anew, and is asked again
    return known
