"""Which processes each member runs, by what they say: of two with one key, one is a copy of the other's home (ledger.md 7.3)."""

from dataclasses import dataclass

import trio

from protocol.identifiers import NodeId

_KEPT_S = 30.0
"""A process that was not heard for so long has ended, or begins again as if it were new."""
_PROCESSES_MAX = 8
"""Of one member. Whoever says more has the oldest forgotten: it speaks of itself alone."""


@dataclass(slots=True)
class _Span:
    first: float
    last: float


class Presences:
    """When each process was heard, first and last. The clock is this process's own, in seconds."""

    def __init__(self) -> None:
        self._spans: dict[NodeId, dict[bytes, _Span]] = {}

    def note(self, node: NodeId, nonce: bytes) -> bool:
        """Note a word of the process with this nonce; return whether another one came after it: both run."""
        now = trio.current_time()
        spans = self._spans.setdefault(node, {})
        for silent in [other for other, span in spans.items() if span.last < now - _KEPT_S]:
            del spans[silent]
        span = spans.setdefault(nonce, _Span(now, now))
        span.last = now
        if len(spans) > _PROCESSES_MAX:
            del spans[min(spans, key=lambda other: spans[other].last)]
        return any(other.first > span.first for other in spans.values())

    def forget(self, node: NodeId, nonce: bytes) -> None:
        """Take note that a process has ended."""
        self._spans.get(node, {}).pop(nonce, None)

    def before_ms(self, node: NodeId, nonce: bytes) -> int | None:
        """Return how long ago a process was heard that is known for longer than this one; None for none within 30 s."""
        now, spans = trio.current_time(), self._spans.get(node, {})
        since = spans[nonce].first if nonce in spans else now
        heard = [span.last for other, span in spans.items() if other != nonce and span.first <= since]
        ago = now - max(heard, default=now - _KEPT_S)
        return round(ago * 1000) if ago < _KEPT_S else None
