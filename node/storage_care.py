"""The noun `storage` on the local socket: figures, and what an operator can have done at once.

Each of the long calls yields `{"progress": …}` now and then and at last `{"result": …}`, which has `ok`. Who goes away
from a scrub leaves it going on; who goes away from a repair or a reclaim ends it after the step it is at.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from node.mending import Mending
from node.ports import PeerTransport
from node.reclaiming import Reclaiming
from node.scrub import Scrub
from node.storage_figures import StorageFigures, walk_document
from protocol.cid import cid_text
from storage.ledger_store import LedgerStore

Document = dict[str, Any]

_NAMED_MAX = 1_000
"""Chunks named in an answer; all are counted."""


class StorageCare:
    """What the routes of `storage` call."""

    def __init__(
        self,
        *,
        figures: StorageFigures,
        scrub: Scrub,
        mending: Mending,
        reclaiming: Reclaiming,
        status: Callable[[], dict[str, int]],
        compare: Callable[[], None],
        ledger: LedgerStore,
        transport: PeerTransport,
    ) -> None:
        """`status` are the figures that every answer has: chunks, bytes, under_replicated, corrupt.

        `compare` has members compare soon what they hold.
        """
        self._figures = figures
        self._scrub = scrub
        self._mending = mending
        self._reclaiming = reclaiming
        self._status = status
        self._compare = compare
        self._ledger = ledger
        self._transport = transport

    async def figures(self) -> Document:
        """Return the `storage status` document."""
        return await self._figures.document()

    async def scrub(self, *, rate: int | None) -> AsyncIterator[Document]:
        """Begin a reading of all chunks, or join the one that was asked for; `rate` in bytes per second, 0 for no limit.

        Leaving does not end it.
        """
        self._scrub.begin(rate)
        async for walk in self._scrub.follow():
            yield {"progress": {"part": "chunks", **walk_document(walk, self._scrub.rate_of(walk))}}
        yield {"result": self._scrubbed()}

    def repair(self) -> AsyncIterator[Document]:
        """Look for everything that is missing, here and with others, and bring it there."""
        self._compare()
        return self._mending.mend()

    async def reclaim(self) -> AsyncIterator[Document]:
        """Delete what is abandoned and give back the space of what is deleted."""
        async with aclosing(self._reclaiming.reclaim()) as documents:
            async for document in documents:
                result = document.get("result")
                yield document if result is None else {"result": {**self._status(), **result}}

    def _scrubbed(self) -> Document:
        walk, damaged, trouble = self._scrub.last, self._scrub.damaged(), self._scrub.trouble
        name = self._ledger.configurations.name_ever
        away = [name(peer.node) for peer in self._transport.peers() if not peer.connected]
        read = walk_document(walk, 0) if walk is not None and not trouble else {}
        return {
            **self._status(),
            "ok": not damaged and not trouble,
            "chunks": 0,
            "bytes": 0,
            "bad": 0,
            "repaired": 0,
            **read,
            "corrupt": len(damaged),
            "damaged": [cid_text(cid) for cid in damaged[:_NAMED_MAX]],
            "away": sorted(away),
            "problems": [trouble] if trouble else [],
        }
