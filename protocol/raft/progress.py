"""What a leader knows of one follower.

```
                 acknowledgement
      ┌───────┐ ─────────────────────► ┌───────────┐
      │ probe │                        │ replicate │
      └───────┘ ◄───────────────────── └───────────┘
        one frame         refusal           bounded in frames, blocks and bytes under way,
        at a time                           next_height runs ahead of match_height
         ▲     │                                       │
         │     └─────────────────┐   ┌─────────────────┘ the block below next_height is not held
         │                       ▼   ▼
         │                    ┌──────────┐
         └─────────────────── │ snapshot │  no frames; an offer with every heartbeat interval
           it has what is     └──────────┘
           held, or history is back
```
A lost frame needs no timer of its own: while anything sent is not acknowledged, a frame without blocks follows the last
one with every heartbeat interval, in order behind it, and a follower that misses one refuses that.
Invariant: match_height < next_height. `match_height` never exceeds what the follower has acknowledged as durable.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from protocol import limits
from protocol.block import Block
from protocol.certificate import Acknowledgement
from protocol.identifiers import Height
from protocol.raft.messages import AppendReply, HeartbeatReply

_NONE = Height(0)


@dataclass(slots=True)
class Progress:
    """One follower, seen from the leader of one term. `heard_tick` counts ticks since the node started."""

    next_height: Height
    heard_tick: int
    match_height: Height = _NONE
    ack: Acknowledgement | None = None
    """Its newest verified acknowledgement of this term."""
    replicating: bool = False
    snapshotting: bool = False
    """It needs what this leader does not hold, and has been told so."""
    paused: bool = False
    """In probe: a frame is out; the next goes out with the heartbeat."""
    refused: int = 0
    """Refusals answered within this heartbeat interval."""
    probe_blocks: bool = True
    """Whether the next probe carries blocks. A silent one is probed without: a megabyte each time would be waste."""
    probe_goal: Height = _NONE
    """What an acknowledgement must reach to end the probe: above prev when blocks were sent, for they may be held back."""
    in_flight: deque[tuple[Height, int]] = field(default_factory=deque)
    """Tip height, rising, and bytes of each frame with blocks under way."""
    in_flight_bytes: int = 0
    confirmed: int = 0
    """The newest round of heartbeats it has answered."""
    commit_height: Height = _NONE
    """What it said it has committed."""
    proof_height: Height = _NONE
    """Height of the newest proof sent to it."""
    certified_height: Height = _NONE
    """Up to where it said it has certificates."""
    certificate_height: Height = _NONE
    """Height of the newest certificate sent to it."""
    election_due: bool = True
    """The election certificate rides along until the follower has acknowledged something in this term (P0)."""
    nudge_due: bool = True
    """A heartbeat interval has passed: repeat what may have been lost."""

    def acknowledged(self, ack: Acknowledgement) -> None:
        """Take a verified acknowledgement that is not below an earlier one."""
        self.ack = ack
        self.election_due = False
        self.match_height = max(self.match_height, ack.height)
        while self.in_flight and self.in_flight[0][0] <= self.match_height:
            self.in_flight_bytes -= self.in_flight.popleft()[1]
        if not self.replicating and not self.snapshotting and ack.height >= self.probe_goal:
            self.replicating, self.paused = True, False
            self.next_height = Height(self.match_height + 1)
        self.next_height = max(self.next_height, Height(self.match_height + 1))

    def probe_from(self, height: Height, *, blocks: bool) -> None:
        """Go (back) to probing; the next frame follows the block below `height`.

        It goes out at once, but not for ever: what a follower refuses over and over is repeated with the heartbeat only. Two
        that stand on two certified chains, or one that lies, would answer each other without a pause.
        """
        self.refused += 1
        self.replicating, self.snapshotting, self.probe_blocks = False, False, blocks
        self.paused = self.refused > limits.PROBES_PER_HEARTBEAT_MAX
        self.in_flight.clear()
        self.in_flight_bytes = 0
        self.forget_sent()  # what rode on a refused frame was of no use to it
        self.next_height = self.probe_goal = max(height, Height(self.match_height + 1))

    def take_heights(self, reply: AppendReply | HeartbeatReply, tip: Height) -> None:
        """Take what it says it has, be it less than before: a restart forgets. A late reply only costs what it has."""
        self.commit_height = min(reply.commit_height, tip)
        self.certified_height = min(reply.certified_height, tip)

    def beat(self) -> None:
        """Hear that a heartbeat interval has passed: what may have been lost is due again."""
        self.nudge_due, self.refused = True, 0
        self.forget_sent()

    def forget_sent(self) -> None:
        """Take for lost what proofs and certificates it has not said it has."""
        self.proof_height, self.certificate_height = self.commit_height, self.certified_height

    def offer_snapshot(self) -> None:
        """Send nothing but offers, the first of them at once, until `probe_from`."""
        self.replicating, self.snapshotting, self.nudge_due = False, True, True

    def probed(self, blocks: Collection[Block]) -> None:
        """Note a probe; the next one goes out with the heartbeat, without blocks.

        Were it enough that the follower answers, each answer of one that holds the blocks back would have them all sent to
        it, each of those frames be refused, and each refusal be a probe: more of them with every round trip.
        """
        self.paused, self.probe_blocks = True, False
        self.probe_goal = self.next_height if blocks else Height(self.next_height - 1)

    def sent(self, tip: Height, size: int) -> None:
        """Note a frame that carries blocks up to `tip`, of `size` bytes."""
        self.in_flight.append((tip, size))
        self.in_flight_bytes += size
        self.next_height = Height(tip + 1)

    def window_open(self) -> bool:
        """Return whether another frame with blocks may go out."""
        if self.replicating:
            return (
                len(self.in_flight) < limits.IN_FLIGHT_APPENDS_MAX
                and self.next_height - 1 - self.match_height < limits.IN_FLIGHT_BLOCKS_MAX
                and self.in_flight_bytes < limits.IN_FLIGHT_BYTES_MAX
            )
        return not self.paused

    def has_all(self, tip: Height, certified: Height) -> bool:
        """Return whether all blocks and the newest certificate have been sent to the follower, for all that is known."""
        return self.replicating and self.next_height > tip and self.certificate_height >= certified

    def is_settled(self, committed: Height, certified: Height) -> bool:
        """Return whether the follower has answered for all that was sent, and knows what is committed and certified."""
        return (
            self.replicating
            and self.match_height + 1 == self.next_height
            and self.commit_height >= committed
            and self.certified_height >= certified
        )
