"""What could happen: whole nodes in an imaginary world, where one seed decides everything.

The same `node.core.Core` that a daemon runs stands here on virtual ports: a network that delays, loses, doubles and
cuts, disks that are slow, fail, fill up, rot, lie and forget what was not synchronised, clocks that are wrong. Nothing waits for real time: when
all tasks wait, the clock jumps. Two runs of a seed are equal event for event, so a failure is its seed.

Glossary
--------
*seed*: the number all randomness comes from, by named streams (`determinism.stream`): a draw more in one part shifts no
other. *round*: faults for a while, then everything is healed and progress is demanded. *story*: a run as data and as text:
the world and the faults, each with its time, drawn from the seed (`faults`, swarm testing: most rounds leave most kinds
out) or written by a person (`stories/`). *tier*: b steps whole nodes, a the Raft cores alone on an event heap. *incarnation*:
one life of a node, from a start to a crash. *history*: every event with its virtual time, hashed as it grows. *client
history*: what clients called and were told, checked for linearizability. *violation*: a checker's sentence on what must
never be.

Goals
-----
The node's code is not changed for the simulation, except that signatures may be replaced by keyed hashes for speed
(`determinism.fake_signatures`). Checkers look at what is written to the disks and what clients were told, not at what
a node believes.

Non-goals
---------
No libp2p and no LevelDB (their adapters have suites of their own); who lies does so in worlds of its own (`liar_world`), or
as a real daemon (`lying_daemon`). `explorer` looks at every world
of three cores within bounds instead of at random ones; `tests/real` does to real daemons what a real machine can.

Order of calls: `runner.simulate` draws a story and tells it: `determinism.run` → `World.run`: boot nodes, then per round
`executor`, `workload`, heal, settle, agree (tier b), or `core_world` (tier a). A failing seed goes through `minimise`.
"""
