"""What an operator sees: `status`, `member list`. Reads what others know; changes nothing.

`problems` names what a person must act on, each with a code for programs and a sentence for people.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from node.block_repair import BlockRepair
from node.clock_watch import ClockWatch
from node.core import Core
from node.destruction import Destruction
from node.record_queue import RecordQueue
from node.repair import Repair
from protocol import limits
from protocol.configuration import Member
from protocol.identifiers import NodeId, peer_id
from protocol.raft.state import Role

Document = dict[str, Any]
_QUEUE_STUCK = 100
"""Records waiting at once that say more than "somebody is adding records"."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What only the daemon knows: whether the disk took the last write, its free share (0 to 1), what the network complains of.

    `free_bytes` are those of the disk, `payload_file_bytes` those of the files in which chunks lie.
    `check_room_to_mend` raises StorageFull where a damaged ledger database could not be made anew beside itself.
    """

    is_disk_full: Callable[[], bool]
    free_share: Callable[[], float]
    network_problems: Callable[[], tuple[str, ...]]
    check_room_to_mend: Callable[[], None] = lambda: None
    free_bytes: Callable[[], int] = lambda: 0
    payload_file_bytes: Callable[[], int] = lambda: 0


class StatusReporter:
    """Puts the documents together. `http` is set once the port is bound."""

    def __init__(
        self,
        *,
        core: Core,
        queue: RecordQueue,
        repair: Repair,
        block_repair: BlockRepair,
        destruction: Destruction,
        clock_watch: ClockWatch,
        machine: Machine,
    ) -> None:
        self._core = core
        self._queue = queue
        self._repair = repair
        self._block_repair = block_repair
        self._destruction = destruction
        self._clock_watch = clock_watch
        self._machine = machine
        self.http: str | None = None

    def report(self) -> Document:
        """Return the `status` document."""
        core, configuration = self._core, self._core.store.configuration
        members = configuration.by_node
        mark, leader = core.applier.mark, core.leader()
        raft = core.consensus.raft if core.consensus is not None else None
        transport = core.ports.transport
        return {
            "facility": members[transport.me].name,
            "peer_id": peer_id(transport.me),
            "network": core.network.hex(),
            "role": members[transport.me].role,
            "raft_role": raft.role.value if raft is not None else None,
            "leader": members[leader].name if leader in members else None,
            "term": raft.term if raft is not None else core.store.header(mark.height).term,
            "height": raft.tip_height if raft is not None else mark.height,
            "certified_height": mark.height,
            "history_height": core.store.history_height(),
            "tree_size": mark.tree_size,
            "tree_root": mark.frontier.root().hex(),
            "voters": sorted(members[node].name for node in configuration.voters),
            "quorum": configuration.raft_quorum,
            "release_gate": False,
            "addresses": list(transport.addresses()),
            "http": self.http,
            "queued": self._queue.length,
            "problems": self.problems(),
            "peers": [
                {
                    "name": members[peer.node].name,
                    "peer_id": peer_id(peer.node),
                    "role": members[peer.node].role,
                    "connected": peer.connected,
                    "address": peer.address,
                    "found_by": peer.found_by,
                }
                for peer in transport.peers()
            ],
        }

    def problems(self) -> list[Document]:
        """Return what an operator must act on, most urgent first."""
        found = [
            *self._ledger_problems(),
            *self._disk_problems(),
            *(_problem("network", text) for text in self._machine.network_problems()),
        ]
        if self._clock_watch.is_off():
            seconds = self._clock_watch.skew_ms() / 1000
            found.append(
                _problem(
                    "clock",
                    f"this machine's clock is {-seconds:+.1f} s off the other members'; set it by NTP",
                    skew_ms=-round(seconds * 1000),
                )
            )
        if self._queue.length >= _QUEUE_STUCK:
            found.append(
                _problem(
                    "queue",
                    f"{self._queue.length} records wait to become final; see whether enough members are connected",
                )
            )
        return found

    def _ledger_problems(self) -> list[Document]:
        core = self._core
        members: Mapping[NodeId, Member] = core.store.configuration.by_node
        away = sorted(members[peer.node].name for peer in core.ports.transport.peers() if not peer.connected)
        found: list[Document] = []
        raft = core.consensus.raft if core.consensus is not None else None
        if (raft is not None and raft.leader is None) or (raft is not None and raft.role is Role.CANDIDATE):
            found.append(
                _problem(
                    "no-quorum",
                    "no leader: fewer voters than a quorum reach each other; writes wait until they do",
                )
            )
        if core.store.is_rebuilt() and core.ports.transport.me in core.store.configuration.voters:
            found.append(
                _problem(
                    "rejoining",
                    "the ledger was rebuilt, or lacks its end; this voter signs nothing until it has caught up",
                )
            )
        if core.state_check is not None and core.state_check.trouble:
            found.append(_problem("state-differs", core.state_check.trouble))
        history = core.store.history
        if history is not None:
            found.append(
                _problem(
                    "history",
                    f"the history of the ledger is being fetched from other members: block {history.height} of "
                    f"{history.until} is here; audits wait for it",
                    done=history.height,
                    total=history.until,
                )
            )
        if away:
            found.append(
                _problem(
                    "peers-missing",
                    f"not connected: {', '.join(away)}; see whether they run and can be reached",
                    members=away,
                )
            )
        return found

    def _disk_problems(self) -> list[Document]:
        found: list[Document] = []
        free, figures = self._machine.free_share(), self._repair.status()
        if self._machine.is_disk_full():
            found.append(
                _problem(
                    "disk-full",
                    "the disk is full: nothing is written, and this node takes no part in the ledger; make room, and restart the daemon if this stays",
                )
            )
        elif free < limits.DISK_RESERVE:
            found.append(
                _problem(
                    "disk",
                    f"only {free:.0%} of the disk is free: new records are refused below {limits.DISK_RESERVE:.0%}; make room",
                )
            )
        if self._block_repair.trouble:
            found.append(_problem("damaged-ledger", self._block_repair.trouble))
        if self._repair.trouble:
            found.append(_problem("damaged", self._repair.trouble))
        if self._destruction.trouble:
            found.append(
                _problem("erasing", f"an erased record is not gone yet: {self._destruction.trouble}")
            )
        if figures["corrupt"]:
            found.append(
                _problem(
                    "corrupt",
                    f"{figures['corrupt']} stored chunks are damaged and are being fetched from other members; check the disk",
                )
            )
        return found

    def members(self) -> Document:
        """Return the `member list` document."""
        rows = [
            {
                "name": member.name,
                "kind": member.kind,
                "role": member.role,
                "peer_id": peer_id(member.node),
                "addresses": list(member.addresses),
            }
            for member in self._core.store.configuration.members
        ]
        return {"members": sorted(rows, key=lambda row: str(row["name"])), "proposals": []}


def _problem(code: str, text: str, **details: object) -> Document:
    return {"code": code, "text": text, **details}
