"""What a leader knows of one follower.

```
                 acknowledgement
      ┌───────┐ ─────────────────────► ┌───────────┐
      │ probe │                        │ replicate │
      └───────┘ ◄───────────────────── └───────────┘
        one frame         refusal           bounded in frames, blocks and bytes under way,
        at a time                           next_height runs ahead of match_height
```
A lost frame needs no timer of its own: while anything sent is not acknowledged, a frame without blocks follows the last
one with every heartbeat interval, in order behind it, and a follower that misses one refuses that.
Invariant: match_height < next_height. `match_height` never exceeds what the follower has acknowledged as durable.
"""

from collections import deque
from dataclasses import dataclass, field

from protocol import limits
from protocol.certificate import Acknowledgement
from protocol.identifiers import Height

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
    paused: bool = False
    """In probe: a frame is out; the next goes out with the heartbeat."""
    probe_blocks: bool = True
    """Whether the next probe carries blocks. A silent one is probed without: a megabyte each time would be waste."""
    in_flight: deque[tuple[Height, int]] = field(default_factory=deque)
    """Tip height, rising, and bytes of each frame with blocks under way."""
    in_flight_bytes: int = 0
    confirmed: int = 0
    """The newest round of heartbeats it has answered."""
    commit_height: Height = _NONE
    """What it said it has committed."""
    proof_height: Height = _NONE
    """Height of the newest proof sent to it."""
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
        if not self.replicating:
            self.replicating, self.paused = True, False
            self.next_height = Height(self.match_height + 1)
        self.next_height = max(self.next_height, Height(self.match_height + 1))

    def probe_from(self, height: Height, *, blocks: bool) -> None:
        """Go (back) to probing; the next frame follows the block below `height`."""
        self.replicating, self.paused, self.probe_blocks = False, False, blocks
        self.in_flight.clear()
        self.in_flight_bytes = 0
        self.proof_height = self.commit_height  # what rode on a refused frame was of no use to it
        self.next_height = max(height, Height(self.match_height + 1))

    def sent(self, tip: Height, size: int) -> None:
        """Note a frame that carries blocks up to `tip`, of `size` bytes."""
        if self.replicating:
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

    def is_settled(self, committed: Height) -> bool:
        """Return whether the follower has answered for all that was sent, and knows that `committed` is: nothing to repeat."""
        return (
            self.replicating and self.match_height + 1 == self.next_height and self.commit_height >= committed
        )
