"""One process per key: who starts asks whether another one speaks, and ends before it has signed anything (ledger.md 7.3).

    nobody has heard one lately ──────────────────────────────────────────────────────────► alone
    heard a moment ago ─► it says no more for `_SILENCE_MS`: this member's last life ─────► alone
                     └─► it goes on, by its signature, or by the word of more than may lie ─► Superseded

A process that was killed lives on in what others heard of it, for as long as that is new to them; one that lives is heard
again and again, for its connections stay its own (`node.libp2p_transport`). In a network of one nobody hears anything.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio

from node.ports import Clock
from node.tips import INTERVAL_MS, Tips
from node.watermark import Watermark
from protocol.identifiers import NodeId

_SPOKE_LATELY_MS = 2 * INTERVAL_MS
_SILENCE_MS = 3 * INTERVAL_MS
_UNHEARD_MS = 8 * INTERVAL_MS
"""A bound for liars, and for those who have heard it and went away."""
_ASK_AGAIN_MS = 250
_GOES_ON = 3
"""Words heard one after another show a living process, whatever its clock says: what a dead one has sent comes at once."""
_APART_S = INTERVAL_MS / 2_000


@dataclass(slots=True)
class _Witness:
    """What one member has told of another process so far."""

    mark: Watermark
    heard_at: float
    silent_ms: int = 0
    heard: int = 0
    """How often it has heard that process anew."""


class Fence:
    """Asks the members that have heard of another process. `ask` asks one of them, and gives None for no answer."""

    def __init__(
        self, ask: Callable[[NodeId], Awaitable[Watermark | None]], tips: Tips, clock: Clock, *, liars: int
    ) -> None:
        self._ask = ask
        self._tips = tips
        self._clock = clock
        self._liars = liars

    async def pass_with(self, marks: Mapping[NodeId, Watermark]) -> None:
        """Return when, by those `marks` and what is answered from now on, no other process with this key speaks.

        Raises:
            Superseded: one does.
        """
        self._tips.begin_after([mark.tip for mark in marks.values() if mark.tip is not None])
        now = trio.current_time()
        lately = {
            node: _Witness(mark, now - _age_ms(mark) / 1000)
            for node, mark in marks.items()
            if _age_ms(mark) < _SPOKE_LATELY_MS
        }
        if lately:
            with trio.move_on_after(_UNHEARD_MS / 1000):
                await self._until_silent(lately)
        self._tips.is_alone.set()

    async def _until_silent(self, witnesses: Mapping[NodeId, _Witness]) -> None:
        while min(witness.silent_ms for witness in witnesses.values()) < _SILENCE_MS:
            async with trio.open_nursery() as nursery:
                for node, witness in witnesses.items():
                    nursery.start_soon(self._ask_again, node, witness)
            if sum(witness.heard >= _GOES_ON for witness in witnesses.values()) > self._liars:
                self._tips.give_way()
            self._tips.check()
            await self._clock.sleep_ms(_ASK_AGAIN_MS)

    async def _ask_again(self, node: NodeId, witness: _Witness) -> None:
        mark = await self._ask(node)
        if mark is None:
            return
        before, witness.mark, witness.silent_ms = witness.mark, mark, _age_ms(mark)
        heard_at = trio.current_time() - witness.silent_ms / 1000
        if heard_at - witness.heard_at >= _APART_S:
            witness.heard_at, witness.heard = heard_at, witness.heard + 1
        if mark.tip is not None:
            self._tips.take_own(mark.tip, after=before.tip)


def _age_ms(mark: Watermark) -> int:
    """Return how long ago another process was heard, as far as a member knows."""
    ages = [mark.tip_age_ms] if mark.tip is not None else []
    ages += [mark.beside_ms] if mark.beside_ms is not None else []
    return min(ages, default=10 * _UNHEARD_MS)
