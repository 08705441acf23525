"""The tree, its checkpoints and their witnesses, wired on a node's core. Names classes, holds no behaviour."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from node import http_client
from node.awaiting_disk import RoomAwaitingDisk
from node.checkpoint_desk import CheckpointDesk
from node.checkpoints import Checkpoints
from node.core import Core
from node.evidence import EvidenceDesk
from node.identity import Identity
from node.key_rotation import first_node_id
from node.log_settings import OutsideWitness
from node.log_witness import LogWitness, cosigning_key, key_name
from node.stores import Stores
from node.tree import Tree
from node.witness_client import Post, WitnessClient
from protocol.log_witness import KnownLog
from protocol.signing import SigningKey


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """Who cosigns our checkpoints; and, where this node is a witness of logs itself (`serves`), those besides our own."""

    witnesses: tuple[OutsideWitness, ...] = ()
    serves: bool = False
    logs: tuple[KnownLog, ...] = ()
    post: Post = http_client.post


NO_WITNESSES = CheckpointSettings()


class Checkpointing:
    """Run `tasks` beside the core's. `log_witness` is None where this node is none."""

    def __init__(
        self,
        core: Core,
        stores: Stores,
        identity: Identity,
        evidence: EvidenceDesk,
        settings: CheckpointSettings,
    ) -> None:
        ports = core.ports
        disk = RoomAwaitingDisk(ports.disk, ports.clock)  # not the witness's: it says "not now" instead
        self._store, self._settings = core.store, settings
        self.tree = Tree(
            core.store,
            stores.rows,
            disk=disk,
            workers=ports.workers,
            clock=ports.clock,
            log=ports.log,
            damage=core.damage,
        )
        self.checkpoints = Checkpoints(
            store=core.store,
            rows=stores.rows,
            disk=disk,
            applier=core.applier,
            tree=self.tree,
            secret=SigningKey(identity.checkpoint),
            cosigners=[witness.key for witness in settings.witnesses],
            evidence=evidence,
            transport=ports.transport,
            verification=core.verification,
            clock=ports.clock,
            log=ports.log,
        )
        self._clients = tuple(
            WitnessClient(
                witness,
                checkpoints=self.checkpoints,
                tree=self.tree,
                post=settings.post,
                clock=ports.clock,
                log=ports.log,
            )
            for witness in settings.witnesses
        )
        self.log_witness = self._witness(core, stores, identity) if settings.serves else None
        key = self.log_witness.key if self.log_witness is not None else None
        self.desk = CheckpointDesk(core.store, self.checkpoints, self._clients, key)

    def _witness(self, core: Core, stores: Stores, identity: Identity) -> LogWitness:
        ports = core.ports
        return LogWitness(
            stores.rows,
            # Others have written this name into their settings: it stays when the node key changes.
            name=key_name(first_node_id(identity, stores.keystore)),
            secret=cosigning_key(stores.rows, stores.keystore, ports.entropy),
            logs=self._known_logs,
            own=(self.checkpoints.origin, self.tree),
            disk=ports.disk,
            clock=ports.clock,
            log=ports.log,
        )

    def _known_logs(self) -> tuple[KnownLog, ...]:
        """Return our own log, whose checkpoints a quorum of signers signs, and those in config.toml."""
        quorum = self._store.configuration.certificate_quorum
        own = KnownLog(self.checkpoints.origin, self.checkpoints.log_keys, quorum)
        return (own, *(log for log in self._settings.logs if log.origin != own.origin))

    def tasks(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """Return the tasks that run in the background."""
        return (self.tree.run, self.checkpoints.run, *(client.run for client in self._clients))
