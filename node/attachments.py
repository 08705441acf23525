"""Attachments: what a transaction names by hash and the ledger does not hold (wraps, epoch links, "who read" notes).

They are ciphertext, a few hundred bytes each, kept by every storing member. Whoever makes one stores it durably here
first, then brings it to the others, and only then submits the transaction that names it; whoever lacks one later asks
any member and checks the hash.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import trio

from node.ports import Disk, PeerTransport
from protocol import codec, limits
from protocol.codec import Bytes32, Size, wire
from protocol.errors import Corruption, RemoteFault, Unavailable
from protocol.identifiers import Digest, NodeId
from protocol.wraps import attachment_hash
from storage.envelope_store import EnvelopeStore
from storage.key_value import Batch

CHANNEL = "attachments"
_PUT_MAX = 64
"""Attachments of one message: 64 of 64 KiB stay far below `limits.MESSAGE_BYTES_MAX`."""
_CALL_MS = 3_000

Attachment = Annotated[bytes, Size(1, limits.ATTACHMENT_BYTES_MAX)]


@wire("attachments-put")
@dataclass(frozen=True, slots=True)
class AttachmentsPut:
    """Keep these. Answered by `AttachmentsKept` once they are durable."""

    attachments: Annotated[tuple[Attachment, ...], Size(1, _PUT_MAX)]


@wire("attachments-kept")
@dataclass(frozen=True, slots=True)
class AttachmentsKept:
    """They are durable here."""


@wire("attachment-get")
@dataclass(frozen=True, slots=True)
class AttachmentGet:
    """Send the attachment of this hash. Answered by `AttachmentFound`."""

    digest: Bytes32


@wire("attachment-found")
@dataclass(frozen=True, slots=True)
class AttachmentFound:
    """The attachment, or None when it is not here."""

    attachment: Attachment | None


class Attachments:
    """Keeps attachments here and among the storing members. `check_room` raises StorageFull at the disk's reserve."""

    def __init__(
        self,
        store: EnvelopeStore,
        disk: Disk,
        transport: PeerTransport,
        storing: Callable[[], tuple[NodeId, ...]],
        check_room: Callable[[], None] = lambda: None,
    ) -> None:
        """`storing` returns the members that store, which change with the configuration."""
        self._check_room = check_room
        self._store = store
        self._disk = disk
        self._transport = transport
        self._storing = storing
        transport.serve(CHANNEL, self._serve)

    async def keep(self, attachments: Sequence[bytes]) -> tuple[Digest, ...]:
        """Store attachments here, durably on return; return their hashes.

        Raises:
            StorageFull: nothing was stored.
        """
        batch = Batch()
        digests = tuple([self._store.put_attachment(batch, attachment) for attachment in attachments])
        await self._disk.commit(batch, sync=True)
        return digests

    async def spread(self, digests: Sequence[Digest]) -> None:
        """Bring attachments that are here to the other storing members; return when a majority of them holds all.

        A minority that is away fetches them later (`get`). Doing it again is harmless.

        Raises:
            Unavailable: too few members answered.
        """
        attachments = [await self.get(digest) for digest in digests]
        me, storing = self._transport.me, self._storing()
        kept = {me} & set(storing)
        needed = len(storing) // 2 + 1

        async def push(peer: NodeId) -> None:
            try:
                for start in range(0, len(attachments), _PUT_MAX):
                    request = AttachmentsPut(tuple(attachments[start : start + _PUT_MAX]))
                    answer = await self._transport.call(
                        peer, CHANNEL, codec.encode(request), timeout_ms=_CALL_MS
                    )
                    codec.decode(answer, AttachmentsKept)
            except (Unavailable, RemoteFault):
                return  # it is away or refuses: a majority is enough, and it can fetch what it lacks
            kept.add(peer)

        async with trio.open_nursery() as nursery:
            for peer in storing:
                if peer != me:
                    nursery.start_soon(push, peer)
        if len(kept) < needed:
            raise Unavailable(
                f"only {len(kept)} of the {needed} facilities needed could store what belongs to the transaction"
            )

    async def get(self, digest: Digest) -> bytes:
        """Return an attachment, from here or else from any member; then it is here as well.

        Raises:
            Unavailable: nobody who answers has it.
        """
        try:
            found = self._store.attachment(digest)
        except Corruption:
            found = None  # damaged here: what another member sends replaces it
        if found is not None:
            return found
        connected = {status.node for status in self._transport.peers() if status.connected}
        first = [node for node in self._storing() if node in connected]
        for peer in (*first, *sorted(connected - set(first))):
            found = await self._ask(peer, digest)
            if found is not None:
                await self.keep((found,))
                return found
        raise Unavailable(f"no facility that answers holds attachment {digest.hex()[:16]}; retry later")

    async def forget(self, digests: Sequence[Digest]) -> None:
        """Delete attachments here: wraps of a grant that ended."""
        batch = Batch()
        for digest in digests:
            self._store.delete_attachment(batch, digest)
        await self._disk.commit(batch, sync=True)

    async def _ask(self, peer: NodeId, digest: Digest) -> bytes | None:
        request = codec.encode(AttachmentGet(digest))
        try:
            answer = await self._transport.call(peer, CHANNEL, request, timeout_ms=_CALL_MS)
            found = codec.decode(answer, AttachmentFound).attachment
        except (Unavailable, RemoteFault):
            return None  # the next member may have it
        return found if found is not None and attachment_hash(found) == digest else None

    async def _serve(self, _peer: NodeId, body: bytes) -> bytes:
        request = codec.decode(body, AttachmentsPut | AttachmentGet)  # type: ignore[arg-type]  # a union of wire classes
        if isinstance(request, AttachmentsPut):
            self._check_room()
            await self.keep(request.attachments)
            return codec.encode(AttachmentsKept())
        try:
            found = self._store.attachment(Digest(request.digest))
        except Corruption:
            found = None  # damaged here: never serve it
        return codec.encode(AttachmentFound(found))
