"""The Read that stands on the ledger before anything is opened, and the sealed note that tells the patient who it was."""

from node.attachments import Attachments
from node.ports import Entropy
from node.receipts import Submitter
from node.vaults import ReadKey
from protocol.errors import Forbidden, NotFinal, Unavailable
from protocol.hpke import x25519_public
from protocol.identifiers import ZERO, Digest, NodeId, Rid, Vid
from protocol.ledger_rows import Receipt
from protocol.signing import SigningKey
from protocol.transaction import Read, sign
from protocol.wraps import WhoNote, seal_who
from storage.ledger_store import LedgerStore


class Announcer:
    """Announces the opening of records. `key` is this facility's node key."""

    def __init__(
        self,
        *,
        key: SigningKey,
        ledger: LedgerStore,
        attachments: Attachments,
        submitter: Submitter,
        entropy: Entropy,
    ) -> None:
        self._key = key
        self._me = NodeId(key.public)
        self._ledger = ledger
        self._attachments = attachments
        self._submitter = submitter
        self._entropy = entropy

    async def announce(
        self, vid: Vid, rids: tuple[Rid, ...], key: ReadKey, purpose: str, user: str | None
    ) -> Receipt:
        """Tell the ledger, and by the sealed note the patient, who opens which records; return when it is final.

        Raises:
            Unavailable: no quorum; nothing may be opened.
            Forbidden: the ledger refused it.
        """
        member = self._ledger.configurations.known_member(self._me)
        who = WhoNote(user or "", "", "", member.name)
        note = seal_who(who, vid, key.audit_public, seed32=self._entropy.bytes(32))
        # Stored by a majority before the Read that names it: the patient must be able to see who it was.
        (who_hash,) = await self._attachments.keep((note,))
        await self._attachments.spread((who_hash,))
        read = Read(
            vid,
            rids,
            key.gid,
            purpose,
            key.actor.public,
            Digest(ZERO),
            x25519_public(self._entropy.bytes(32)),
            self._entropy.bytes(32),
            who_hash,
            self._submitter.valid_until(),
        )
        try:
            receipt = await self._submitter.submit(sign(read, self._submitter.ledger, key.actor, self._key))
        except NotFinal:
            raise Unavailable(
                "no quorum confirmed the read, so nothing was opened; try again later"
            ) from None
        if not receipt.is_accepted:
            raise Forbidden(f"the ledger {receipt.verdict}; nothing was opened")
        return receipt
