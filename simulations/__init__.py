"""What could happen: whole nodes in an imaginary world, where one seed decides everything.

The same `node.core.Core` that a daemon runs stands here on virtual ports: a network that delays, loses, doubles and
cuts, disks that are slow and forget what was not synchronised, clocks that are wrong. Nothing waits for real time: when
all tasks wait, the clock jumps. Two runs of a seed are equal event for event, so a failure is its seed.

Glossary
--------
*seed*: the number all randomness comes from, by named streams (`determinism.stream`): a draw more in one part shifts no
other. *round*: faults for a while, then everything is healed and progress is demanded. *plan*: which faults a round
knows and how strong they are (swarm testing: most plans leave most faults out). *incarnation*: one life of a node,
from a start to a crash. *history*: every event with its virtual time, hashed as it grows. *violation*: a checker's
sentence on what must never be.

Goals
-----
The node's code is not changed for the simulation, except that signatures may be replaced by keyed hashes for speed
(`determinism.fake_signatures`). Checkers look at what is written to the disks and what clients were told, not at what
a node believes.

Non-goals
---------
No libp2p and no LevelDB (their adapters have suites of their own), no lying nodes yet, no damaged disks yet.

Order of calls: `runner.simulate` → `determinism.run` → `World.run`: boot nodes, then per round `faults`, `workload`,
heal, `checkers.converged`.
"""
