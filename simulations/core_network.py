"""The network of tier A: links between numbered nodes that delay, lose, double, reorder, hold back and cut.

Messages cross as the values they are, which nobody changes; in some seeds they cross the wire codec. A link has two
lanes, as the real transport has: heartbeats do not queue behind blocks.
"""

from collections.abc import Callable, Iterable
from random import Random

from protocol import codec, limits
from protocol.block import Block, check_body
from protocol.raft.messages import AppendEntries, CheckedAppend, Input, Message, check_append
from simulations.core_agenda import Agenda
from simulations.network import GOOD, Quality


class Frames:
    """Makes frames of messages. A block's bytes are decoded and checked once, whoever gets them however often."""

    def __init__(self, *, cross_codec: bool) -> None:
        self.cross_codec = cross_codec
        self._blocks: dict[bytes, Block] = {}

    def frame(self, message: Message) -> "Frame":
        """Return what carries a message to any number of peers."""
        return Frame(message, self, codec.encode(message) if self.cross_codec else None)

    def checked(self, message: AppendEntries) -> CheckedAppend:
        """Return a frame with its blocks decoded and checked.

        Raises:
            RemoteFault: a block is malformed or its body invalid.
        """
        return CheckedAppend(
            message, tuple([self._blocks.get(raw) or self._check(raw) for raw in message.blocks])
        )

    def _check(self, raw: bytes) -> Block:
        block = Block.decode(raw)
        check_body(block)
        self._blocks[raw] = block
        return block


class Frame:
    """One message on its way."""

    __slots__ = ("_checked", "_decoded", "_frames", "_raw", "message")

    def __init__(self, message: Message, frames: Frames, raw: bytes | None) -> None:
        self.message = message
        self._frames = frames
        self._raw = raw
        self._decoded: Input | None = None
        self._checked: CheckedAppend | None = None

    def input(self) -> Input:
        """Return what `Raft.step` takes.

        Raises:
            RemoteFault: a block is malformed or its body invalid.
        """
        if self._raw is not None:
            if self._decoded is None:  # once for all receivers: the same bytes give the same value
                message: Message = codec.decode_union(self._raw, Message)
                self._decoded = check_append(message) if isinstance(message, AppendEntries) else message
            return self._decoded
        if not isinstance(self.message, AppendEntries):
            return self.message
        if self._checked is None:
            self._checked = self._frames.checked(self.message)
        return self._checked


class Link:
    """One direction between two nodes."""

    __slots__ = ("clogs", "cuts", "held", "in_flight", "last", "quality")

    def __init__(self) -> None:
        self.cuts = 0
        self.clogs = 0
        self.held: list[object] = []
        self.in_flight = 0
        self.last = [0.0, 0.0]  # when the latest message of each lane arrives
        self.quality: Quality | None = None


class CoreNetwork:
    """All links. `deliver(source, target, load)` is called for what arrives."""

    def __init__(self, agenda: Agenda, rng: Random, deliver: Callable[[int, int, object], None]) -> None:
        self.quality = GOOD
        self.sent = 0
        self._agenda = agenda
        self._rng = rng
        self._deliver = deliver
        self._links: dict[tuple[int, int], Link] = {}

    def link(self, source: int, target: int) -> Link:
        """Return one direction between two nodes."""
        link = self._links.get((source, target))
        if link is None:
            link = self._links[source, target] = Link()
        return link

    # --- faults ---------------------------------------------------------------------------------------------------

    def cut(self, directions: Iterable[tuple[int, int]]) -> None:
        """Let nothing through in these directions; what is on its way is lost. Cuts add up."""
        for source, target in directions:
            self.link(source, target).cuts += 1

    def join(self, directions: Iterable[tuple[int, int]]) -> None:
        """Undo one cut of each direction, if it was not healed already."""
        for source, target in directions:
            link = self.link(source, target)
            link.cuts = max(0, link.cuts - 1)

    def is_cut(self, source: int, target: int) -> bool:
        """Whether messages in a direction are dropped."""
        return self.link(source, target).cuts > 0

    def clog(self, source: int, target: int) -> None:
        """Hold back everything in a direction."""
        self.link(source, target).clogs += 1

    def release(self, source: int, target: int) -> None:
        """Undo one clog, if it was not healed already: what was held comes all at once."""
        link = self.link(source, target)
        link.clogs = max(0, link.clogs - 1)
        if not link.clogs:
            held, link.held = link.held, []
            for load in held:
                self._agenda.after(0.0, self._arrive, link, source, target, load)

    def heal(self) -> None:
        """Make every link good."""
        self.quality = GOOD
        for (source, target), link in self._links.items():
            link.cuts, link.clogs, link.quality = 0, 0, None
            self.release(source, target)

    # --- messages -------------------------------------------------------------------------------------------------

    def send(self, source: int, target: int, load: object, *, lane: int) -> None:
        """Send something that may be lost, doubled and overtaken."""
        link = self._links.get((source, target)) or self.link(source, target)
        if link.cuts or link.in_flight >= limits.PEER_QUEUE_MESSAGES_MAX:
            return
        self.sent += 1
        rng, agenda = self._rng, self._agenda
        quality = link.quality or self.quality
        if quality.loss and rng.random() < quality.loss:
            return
        copies = 2 if quality.duplicate and rng.random() < quality.duplicate else 1
        for _ in range(copies):
            arrival = agenda.now + (quality.delay_ms + quality.jitter_ms * rng.expovariate(1)) / 1000
            if not (quality.reorder and rng.random() < quality.reorder):
                arrival = max(arrival, link.last[lane])
                link.last[lane] = arrival
            link.in_flight += 1
            agenda.at(arrival, self._arrive, link, source, target, load)

    def _arrive(self, link: Link, source: int, target: int, load: object) -> None:
        if link.cuts:
            link.in_flight -= 1
        elif link.clogs:
            link.held.append(load)
        else:
            link.in_flight -= 1
            self._deliver(source, target, load)
