"""What is shown of checkpoints: `audit checkpoint`, `GET /checkpoint`, and what an operator must act on."""

from typing import Any

from node.checkpoints import Checkpoints
from node.witness_client import WitnessClient
from protocol.checkpoint import NoteKey, SignedCheckpoint, log_key
from protocol.errors import Unavailable
from storage.ledger_store import LedgerStore

Document = dict[str, Any]


class CheckpointDesk:
    """The service that the routes call `checkpoints`."""

    def __init__(
        self,
        store: LedgerStore,
        checkpoints: Checkpoints,
        clients: tuple[WitnessClient, ...],
        witness_key: NoteKey | None,
    ) -> None:
        """`witness_key` is the key under which this node itself cosigns, None where it is no witness of logs."""
        self._store = store
        self._checkpoints = checkpoints
        self._clients = clients
        self._witness_key = witness_key

    def newest(self) -> SignedCheckpoint | None:
        """Return the newest checkpoint of a quorum of signers, with whatever cosignatures there are; None before the first."""
        return self._checkpoints.newest()

    def report(self, *, witnessed: bool) -> Document:
        """Return the newest checkpoint as text, who has signed it, and the keys that others need to check it.

        `witnessed`: the newest that an outside witness has cosigned.

        Raises:
            Unavailable: there is none yet.
        """
        note = self._checkpoints.witnessed() if witnessed else self._checkpoints.newest()
        if note is None:
            raise Unavailable(
                "no checkpoint is cosigned yet: name witnesses in config.toml, or see carechain status for what they answer"
                if witnessed
                else "no checkpoint is signed yet: it takes a transaction and a quorum of signers that are connected"
            )
        names = self._names()
        signed = note.signed_by((*names, *self._checkpoints.cosigners))
        return {
            "checkpoint": note.encode().decode(),
            "origin": note.checkpoint.origin,
            "tree_size": note.checkpoint.size,
            "tree_root": note.checkpoint.root.hex(),
            "signed_by": sorted(names[key] for key in signed if key in names),
            "cosigned_by": [
                {"name": key.name, "time_s": signature.time_s}
                for key, signature in signed.items()
                if key not in names
            ],
            "keys": [{"facility": name, "key": key.text} for key, name in names.items()],
            "witness_key": self._witness_key.text if self._witness_key is not None else None,
        }

    def problems(self) -> tuple[str, ...]:
        """Return sentences on what an operator must act on."""
        troubles = (self._checkpoints.trouble, *(client.trouble for client in self._clients))
        return tuple(trouble for trouble in troubles if trouble)

    def _names(self) -> dict[NoteKey, str]:
        configuration = self._store.configuration
        members = (configuration.by_node[node] for node in configuration.signers)
        return {log_key(self._store.network, member.checkpoint): member.name for member in members}
