"""Checks transactions and blocks in worker threads, each transaction once per node however it arrives.

That a transaction holds is remembered by the hash of its bytes, so that what was checked when a client submitted it is
not verified again in the block that orders it. Only good verdicts are kept; the memory is bounded.
"""

from collections import OrderedDict
from collections.abc import Iterable

import trio

from node.event_log import EventLog
from node.ports import Workers
from protocol import block as blocks
from protocol import transaction
from protocol.block import Block, Entries
from protocol.errors import RemoteFault
from protocol.identifiers import Digest, NetworkId, NodeId, Txid
from protocol.signing import sha256
from protocol.transaction import SignedTransaction

_VERDICTS_MAX = 16_384
_PER_THREAD = 64
"""Transactions checked per hand-over to a thread: the hand-over costs as much as one signature."""
_INLINE_MAX = 2
"""Transactions checked where they are: at most 0.2 ms in which nothing else runs."""


class Verification:
    """The node's memory of what it has checked, and of who sent what does not hold."""

    def __init__(self, network: NetworkId, workers: Workers, log: EventLog) -> None:
        self._network = network
        self._workers = workers
        self._log = log
        self._known: OrderedDict[Digest, None] = OrderedDict()
        self.faults: dict[NodeId, int] = {}

    async def check_transactions(self, raw: tuple[bytes, ...]) -> Entries:
        """Return each transaction parsed, with its id, all checked.

        Raises:
            RemoteFault: one of them does not hold; none is taken.
        """
        return _all_held(await self._verdicts(raw))

    async def sift_transactions(
        self, raw: tuple[bytes, ...]
    ) -> tuple[Entries, tuple[bytes, ...], RemoteFault | None]:
        """Return those transactions that hold, parsed and as bytes, and the first fault of those that do not.

        Submissions of many clients travel together: a bad one must not take the others with it.
        """
        verdicts = await self._verdicts(raw)
        faults = [verdict for verdict in verdicts if isinstance(verdict, RemoteFault)]
        if not faults:
            return _all_held(verdicts), raw, None
        held = tuple(
            [
                entry
                for verdict, entry in zip(verdicts, raw, strict=True)
                if not isinstance(verdict, RemoteFault)
            ]
        )
        return (
            _all_held(verdict for verdict in verdicts if not isinstance(verdict, RemoteFault)),
            held,
            faults[0],
        )

    async def _verdicts(self, raw: tuple[bytes, ...]) -> "tuple[_Verdict, ...]":
        if len(raw) <= _INLINE_MAX:
            # A hand-over to a thread and back costs as much as the check, and waits twice for a processor.
            digests, known = self._recall(raw)
            verdicts = _check_part(raw, known, self._network)
            self._remember(digests, verdicts)
            return verdicts
        parts = [raw[start : start + _PER_THREAD] for start in range(0, len(raw), _PER_THREAD)]
        checked: list[tuple[_Verdict, ...]] = [()] * len(parts)

        async def check(index: int) -> None:
            digests, known = self._recall(parts[index])
            checked[index] = await self._workers.run(_check_part, parts[index], known, self._network)
            self._remember(digests, checked[index])

        async with trio.open_nursery() as nursery:
            for index in range(len(parts)):
                nursery.start_soon(check, index)
        return tuple([verdict for part in checked for verdict in part])

    def _recall(self, raw: tuple[bytes, ...]) -> tuple[tuple[Digest, ...], tuple[bool, ...]]:
        digests = tuple([sha256(entry) for entry in raw])
        return digests, tuple([digest in self._known for digest in digests])

    def _remember(self, digests: tuple[Digest, ...], verdicts: "tuple[_Verdict, ...]") -> None:
        for digest, verdict in zip(digests, verdicts, strict=True):
            if not isinstance(verdict, RemoteFault):
                self._known[digest] = None
        while len(self._known) > _VERDICTS_MAX:
            self._known.popitem(last=False)

    async def check_block(self, block: Block) -> None:
        """Check a block's body (P2).

        Raises:
            RemoteFault: what does not hold.
        """
        blocks.check_shape(
            block
        )  # before a signature is verified: what is oversized must not cost seconds of work
        entries = await self.check_transactions(block.transactions)
        # Not in a worker: 2 us per transaction, and it would hold the interpreter lock there just as well.
        blocks.check_body(block, entries)

    def reject(self, sender: NodeId, fault: RemoteFault) -> None:
        """Count and log what a peer sent against the protocol; the message is dropped, the peer carries on."""
        self.faults[sender] = self.faults.get(sender, 0) + 1
        self._log.warning(
            "peer broke the protocol", peer=sender.hex()[:16], fault=str(fault), count=self.faults[sender]
        )


_Verdict = tuple[SignedTransaction, Txid] | RemoteFault


def _all_held(verdicts: Iterable[_Verdict]) -> Entries:
    held = []
    for verdict in verdicts:
        if isinstance(verdict, RemoteFault):
            raise verdict
        held.append(verdict)
    return tuple(held)


def _check_part(
    entries: tuple[bytes, ...], known: tuple[bool, ...], network: NetworkId
) -> tuple[_Verdict, ...]:
    return tuple(
        [_check_one(raw, network, is_known=is_known) for raw, is_known in zip(entries, known, strict=True)]
    )


def _check_one(raw: bytes, network: NetworkId, *, is_known: bool) -> _Verdict:
    try:
        return transaction.parse(raw, network) if is_known else transaction.check(raw, network)
    except RemoteFault as fault:
        return fault
