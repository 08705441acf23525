"""All configurations since genesis, by the height of the block that set them. Read out of ledger state, kept for ever.

What was signed under an old configuration is checked under it, and those who have left keep their names in old entries.
"""

import itertools
from collections.abc import Iterable

from protocol import codec
from protocol.ballots import CONFIGURATION_PREFIX
from protocol.configuration import Configuration, Member
from protocol.errors import Corruption, Malformed
from protocol.governance import successions
from protocol.identifiers import Digest, Height, NodeId

Row = tuple[bytes, bytes]


class ConfigurationHistory:
    """The configurations, oldest first. Made anew from the rows of state whenever those may have changed."""

    def __init__(self, genesis: Configuration) -> None:
        self._genesis = genesis
        self._entries: list[tuple[Height, Configuration]] = [(Height(0), genesis)]
        self._introduced: dict[NodeId, Member] = {}
        self._successors: dict[NodeId, NodeId] = {}
        """Node ids that were given up, and the present ones of their facilities."""

    def introduce(self, member: Member) -> None:
        """Take the card of a facility that is no member yet, our own for one, so that it has a name."""
        self._introduced[member.node] = member

    def load(self, rows: Iterable[Row]) -> None:
        """Take the rows of all configurations in the state in use, in key order.

        Raises:
            Corruption: one does not decode.
        """
        known = dict(self._entries)
        entries = [(Height(0), self._genesis)]
        for key, value in rows:
            height = Height(int.from_bytes(key[len(CONFIGURATION_PREFIX) :], "big"))
            before = known.get(height)
            if before is None or codec.encode(before) != value:
                try:
                    before = codec.decode(value, Configuration)
                except Malformed as error:
                    raise Corruption(f"a configuration in the ledger does not decode: {error}") from None
            entries.append((height, before))
        self._entries = entries
        self._successors = {}
        for (_, earlier), (_, later) in itertools.pairwise(entries):
            for new, old in successions(earlier, later).items():
                self._successors = {one: new if to == old else to for one, to in self._successors.items()}
                self._successors[old] = new

    @property
    def newest(self) -> Configuration:
        """The configuration in force above the applied height."""
        return self._entries[-1][1]

    @property
    def newest_height(self) -> Height:
        """The height of the block that set it; 0 for genesis."""
        return self._entries[-1][0]

    def at(self, height: Height) -> Configuration:
        """Return the configuration in force at `height`, which the last block below it has set (ledger.md 7.2, 5)."""
        return next((one for set_at, one in reversed(self._entries) if set_at < height), self._entries[0][1])

    def before_that_at(self, height: Height) -> Configuration | None:
        """Return the configuration before the one in force at `height`; None where that one is of genesis."""
        below = self.set_below(height)
        return self.at(below[-1][0]) if below else None

    def set_below(self, height: Height) -> tuple[tuple[Height, Configuration], ...]:
        """Return the configurations set below `height`, each with the height of its block; genesis is not among them."""
        return tuple([entry for entry in self._entries[1:] if entry[0] < height])

    def by_digest(self) -> dict[Digest, Configuration]:
        """Return all of them by their digests, by which headers name them."""
        return {one.digest: one for _, one in self._entries}

    def member_ever(self, node: NodeId) -> Member | None:
        """Return a member as it is, or as it last was, or as it introduced itself; None for strangers."""
        return next(
            (one.by_node[node] for _, one in reversed(self._entries) if node in one.by_node),
            self._introduced.get(node),
        )

    def known_member(self, node: NodeId) -> Member:
        """Return what `member_ever` returns for whoever is known to be, or to have been, a member."""
        member = self.member_ever(node)
        assert member is not None, "asked of members only"
        return member

    def name_ever(self, node: NodeId) -> str:
        """Return the name of a member or former member; of anybody else the beginning of the node id."""
        member = self.member_ever(node)
        return member.name if member is not None else node.hex()[:16]

    def present(self, node: NodeId) -> NodeId:
        """Return the node id that a facility has now: another one when its node key has changed since."""
        return self._successors.get(node, node)

    def is_same(self, one: NodeId, other: NodeId) -> bool:
        """Return whether two node ids are of one facility, as ledger state judges it."""
        return one == other or self.present(one) == self.present(other)

    def all_ids(self, node: NodeId) -> tuple[NodeId, ...]:
        """Return all node ids that a facility has or had, sorted."""
        present = self.present(node)
        return tuple(sorted([present, *(one for one, to in self._successors.items() if to == present)]))

    def left_at(self, node: NodeId) -> Height | None:
        """Return the height of the block that let a former member go; None for members and for strangers."""
        left: Height | None = None
        for (_, before), (height, following) in zip(self._entries, self._entries[1:], strict=False):
            if node in following.by_node:
                left = None
            elif node in before.by_node:
                left = height
        return left

    def former(self) -> tuple[NodeId, ...]:
        """Return all who once were members and are not now, sorted."""
        ever = {node for _, one in self._entries for node in one.by_node}
        return tuple(sorted(ever - set(self.newest.by_node)))
