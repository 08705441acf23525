"""Which configuration is in force along the log: the newest in the log, certified or not (ledger.md 7.2; Raft thesis §4.1)."""

from protocol.block import Block
from protocol.configuration import Configuration
from protocol.identifiers import Height, NodeId


class Membership:
    """The configuration in force at the start, and those that blocks have set since.

    A configuration block counts from the moment it is in the log, and no longer when it is truncated. At most one is
    not certified, because the block below it must be (rule 1); but a crash may have forgotten the certificates of some.
    The one before the newest is kept: whoever it lets go still has duties, and is told.
    """

    def __init__(self, base: Height, configuration: Configuration) -> None:
        """`configuration` is in force above `base`, which is certified."""
        self._entries: list[tuple[Height, Configuration]] = [(base, configuration)]
        self.newest = configuration
        """The configuration in force: elections, acknowledgements and blocks to come count in it."""

    @property
    def height(self) -> Height:
        """Height of the block that set the newest configuration, or of where this log began to know."""
        return self._entries[-1][0]

    @property
    def replaced(self) -> Configuration | None:
        """The configuration before the newest, if this log has seen the change."""
        return self._entries[-2][1] if len(self._entries) > 1 else None

    def at(self, height: Height) -> Configuration:
        """Return the configuration that acknowledgements of block `height` count in."""
        below = [configuration for at, configuration in self._entries if at <= height]
        return below[-1] if below else self._entries[0][1]

    def since(self, height: Height) -> list[tuple[Height, Configuration]]:
        """Return what is in force at `height`, and the changes above it, rising, each with the height of its block."""
        above = sum(at > height for at, _ in self._entries)
        return self._entries[-above - 1 :]

    def of(self, digest: bytes) -> Configuration | None:
        """Return the configuration with this digest, if it is still kept."""
        return next((one for _, one in self._entries if one.digest == digest), None)

    def append(self, block: Block) -> None:
        """Hear of a checked block at the tip."""
        if block.is_configuration:
            self.newest = block.next_configuration()
            self._entries.append((block.height, self.newest))

    def truncate_from(self, height: Height) -> None:
        """Hear that the block at `height` and all above it are gone; none of them was certified."""
        while len(self._entries) > 1 and self._entries[-1][0] >= height:
            self._entries.pop()
            self.newest = self._entries[-1][1]

    def certify(self, height: Height) -> None:
        """Hear that `height` is certified: of the configurations at or below it, the newest two are kept."""
        while len(self._entries) > 2 and self._entries[2][0] <= height:
            self._entries.pop(0)

    def remembers(self, node: NodeId) -> bool:
        """Return whether `node` takes or took part in Raft under a configuration that is still kept."""
        for _, configuration in self._entries:  # every message comes through here
            if node in configuration.signers or node in configuration.learners:
                return True
        return False
