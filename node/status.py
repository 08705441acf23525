"""What an operator sees: `status`. Reads what others know; changes nothing.

`problems` names what a person must act on, each with a code for programs and a sentence for people.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from node.block_repair import BlockRepair
from node.checkpoint_desk import CheckpointDesk
from node.clock_watch import ClockWatch
from node.core import Core
from node.destruction import Destruction
from node.evidence import convicted_documents
from node.record_queue import RecordQueue
from node.repair import Repair
from node.standings import Standings
from protocol import limits
from protocol.errors import StorageFull
from protocol.fork import CertifiedFork
from protocol.identifiers import peer_id
from protocol.raft.state import Role
from storage.levels import Level

Document = dict[str, Any]
_QUEUE_STUCK = 100
"""Records waiting at once that say more than "somebody is adding records"."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What only the daemon knows: whether the disk took the last write, its free share (0 to 1), what the network complains of.

    `free_bytes` are those of the disk, `payload_file_bytes` those of the files in which chunks lie, `levels` those of each database.
    `check_quota` raises StorageFull where no more records may be stored, and `check_room_to_mend` where a damaged ledger database could not be made anew beside itself.
    `damaged_ledger_files` are its files in which bytes are damaged though every row can be read (`storage.file_check`).
    """

    is_disk_full: Callable[[], bool]
    free_share: Callable[[], float]
    network_problems: Callable[[], tuple[str, ...]]
    check_room_to_mend: Callable[[], None] = lambda: None
    damaged_ledger_files: Callable[[], tuple[str, ...]] = tuple
    check_quota: Callable[[], None] = lambda: None
    free_bytes: Callable[[], int] = lambda: 0
    payload_file_bytes: Callable[[], int] = lambda: 0
    levels: Callable[[], dict[str, tuple[Level, ...]]] = dict


class StatusReporter:
    """Puts the documents together. `http` is set once the port is bound."""

    def __init__(
        self,
        *,
        core: Core,
        queue: RecordQueue,
        repair: Repair,
        standings: Standings,
        block_repair: BlockRepair,
        destruction: Destruction,
        clock_watch: ClockWatch,
        machine: Machine,
        checkpoints: CheckpointDesk,
    ) -> None:
        self._core = core
        self._queue = queue
        self._repair = repair
        self._standings = standings
        self._block_repair = block_repair
        self._destruction = destruction
        self._clock_watch = clock_watch
        self._machine = machine
        self._checkpoints = checkpoints
        self.http: str | None = None

    def report(self) -> Document:
        """Return the `status` document."""
        core, configuration = self._core, self._core.store.configuration
        members, known = configuration.by_node, core.store.configurations
        mark, leader = core.applier.mark, core.leader()
        raft = core.consensus.raft if core.consensus is not None else None
        transport = core.ports.transport
        return {
            "facility": known.name_ever(transport.me),
            "peer_id": peer_id(transport.me),
            "network": core.network.hex(),
            "role": self._role(),
            "raft_role": raft.role.value if raft is not None else None,
            "leader": members[leader].name if leader in members else None,
            "term": raft.term if raft is not None else core.store.header(mark.height).term,
            "epoch": core.store.epochs.current,
            "height": raft.tip_height if raft is not None else mark.height,
            "certified_height": mark.height,
            "ordered_height": core.standing.ordered_height,
            "history_height": core.store.history_height(),
            "tree_size": mark.tree_size,
            "tree_root": mark.frontier.root().hex(),
            "voters": sorted(members[node].name for node in configuration.voters),
            "quorum": configuration.certificate_quorum,
            "release_gate": False,
            "addresses": list(transport.addresses()),
            "http": self.http,
            "queued": self._queue.length,
            "problems": self.problems(),
            "peers": [
                {
                    "name": known.name_ever(peer.node),
                    "peer_id": peer_id(peer.node),
                    "role": members[peer.node].role if peer.node in members else None,
                    "connected": peer.connected,
                    "address": peer.address,
                    "found_by": peer.found_by,
                }
                for peer in transport.peers()
            ],
        }

    def _role(self) -> str:
        """Return the own role; "candidate" before the ballots are through, "removed" after leaving."""
        store, me = self._core.store, self._core.ports.transport.me
        member = store.configuration.by_node.get(me)
        if member is not None:
            return member.role
        return "candidate" if store.configurations.left_at(me) is None else "removed"

    def problems(self) -> list[Document]:
        """Return what an operator must act on, most urgent first."""
        found = [
            *self._membership_problems(),
            *self._ledger_problems(),
            *self._disk_problems(),
            *(_problem("network", text) for text in self._machine.network_problems()),
            *(_problem("checkpoint", text) for text in self._checkpoints.problems()),
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

    def _membership_problems(self) -> list[Document]:
        role = self._role()
        text = {
            "candidate": "this facility is no member yet: it follows, and waits for the ballots on its card",
            "removed": "this facility has been let go by ballot: it keeps what it holds, and has parted from the others; every few minutes it asks whether it was taken in again",
            "suspended": "this facility is suspended by ballot: it follows, and may neither add nor read records",
        }.get(role)
        return [_problem(role, text)] if text is not None else []

    def _ledger_problems(self) -> list[Document]:
        core = self._core
        name = core.store.configurations.name_ever
        away = sorted(name(peer.node) for peer in core.ports.transport.peers() if not peer.connected)
        found: list[Document] = []
        raft = core.consensus.raft if core.consensus is not None else None
        if (raft is not None and raft.leader is None) or (raft is not None and raft.role is Role.CANDIDATE):
            found.append(
                _problem(
                    "no-quorum",
                    "no leader: fewer voters than a quorum reach each other; writes wait until they do",
                )
            )
        if core.standstill.is_frozen:
            found.append(
                _problem(
                    "frozen",
                    "this member stands still at its operator's word: it signs nothing until a recovery is applied "
                    "(carechain recover apply), or it is told to go on (carechain recover cancel)",
                )
            )
        if core.standstill.trouble is not None:
            found.append(_problem("recovered-without", core.standstill.trouble))
        pause = core.standing.pause(core.ports.clock.now_ms())
        if pause is not None:
            found.append(_problem("not-final", pause))
        found += [_fork_problem(fork, [name(node) for node in fork.liars]) for fork in core.store.forks()]
        if core.store.is_rebuilt() and core.ports.transport.me in core.store.configuration.signers:
            found.append(
                _problem(
                    "rejoining",
                    "the ledger was rebuilt, or lacks its end; this voter signs nothing until it has caught up and the "
                    "others have certified that it begins anew: nothing to do but to wait, and see that they run; when a majority "
                    "has lost its ledgers at once, only a recovery helps (carechain recover collect)",
                )
            )
        twins = [name(node) for node in core.tips.twins()]
        if twins:
            found.append(
                _problem(
                    "two-processes",
                    f"two processes run with the key of {', '.join(twins)}: a copy of that home; the facility must end one",
                    members=twins,
                )
            )
        if core.state_check is not None and core.state_check.trouble:
            found.append(_problem("state-differs", core.state_check.trouble))
        found += [
            _problem(
                "evidence",
                f"{one['member']} {one['meaning']}, at height {one['height']} ({one['kind']}): the proof is on the ledger; "
                "talk to that facility, and vote on what follows (carechain member propose)",
                **one,
            )
            for one in convicted_documents(core.store)
        ]
        return [*found, *self._distance_problems(away)]

    def _distance_problems(self, away: list[str]) -> list[Document]:
        """Return what is not here: history that is still being fetched, and members that are `away`."""
        found: list[Document] = []
        history = self._core.store.history
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
        found.extend(
            _problem("unproved", text)
            for text in self._standings.problems(self._core.store.configurations.name_ever)
        )
        try:
            self._machine.check_quota()
        except StorageFull as full:
            found.append(_problem("quota", str(full)))
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


def _fork_problem(fork: CertifiedFork, liars: list[str | None]) -> Document:
    who = ", ".join(map(str, liars)) + " voted for both" if liars else "members have lied"
    return _problem(
        "fork",
        f"two blocks of height {fork.height} are certified: {who}; the one applied here stays, "
        "and people must judge: ask the other members which one they have",
        height=fork.height,
        members=liars,
    )


def _problem(code: str, text: str, **details: object) -> Document:
    return {"code": code, "text": text, **details}
