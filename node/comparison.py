"""Comparing stories: a member that voted for another block than the one applied here is looked into (`node.forks`).

A leader that lies may tell each of two members a story of its own, and make it final with each of them. All that Raft says to
them comes from the liar, so they would never meet: what they meet by are the tips that signers state to all (`node.tips`).
"""

from collections.abc import Callable

from node.forks import Forks
from node.ports import Clock
from node.tips import INTERVAL_MS, Heard
from protocol.errors import Corruption, Unavailable
from protocol.identifiers import NodeId
from protocol.tip_statement import TipStatement
from storage.ledger_store import LedgerStore


class Comparison:
    """Run `run` beside the tips, the newest of which `tip_of` returns."""

    def __init__(
        self, store: LedgerStore, tip_of: Callable[[NodeId], Heard | None], forks: Forks, clock: Clock
    ) -> None:
        self._store = store
        self._tip_of = tip_of
        self._forks = forks
        self._clock = clock

    async def run(self) -> None:
        """Compare as often as tips are stated, until cancelled."""
        while True:
            await self._clock.sleep_ms(INTERVAL_MS)
            for node in self._store.configuration.signers:
                heard = self._tip_of(node)
                if heard is not None and self._differs(heard.statement):
                    await self._forks.look_into(node, at=heard.statement.vote_height)

    def _differs(self, tip: TipStatement) -> bool:
        """Return whether a signer's last vote, of which it says that it is final, is for another block than is final here.

        Votes of a branch that was given up may look so too: who looks into it sees that, and not again for a minute.
        """
        if tip.epoch != self._store.epochs.current:
            return False
        if not 0 < tip.vote_height <= min(tip.certified_height, self._store.applied().height):
            return False
        try:
            return self._store.hash(tip.vote_height) != tip.vote_hash
        except (Corruption, Unavailable):
            return False  # damaged, or not fetched yet: somebody else compares it
