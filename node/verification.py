"""Checks transactions and blocks in worker threads, each transaction once per node however it arrives.

That a transaction holds is remembered by the hash of its bytes, so that what was checked when a client submitted it is
not verified again in the block that orders it. Only good verdicts are kept; the memory is bounded.

Of blocks that a certificate covers, every transaction was verified by each signer of the quorum before it voted.
A member may choose to verify a random share of them again, drawn where nobody can foresee it, instead of all (config.toml:
`history = "sampled"`); form, size, schema, roots, links and certificates are checked in full all the same.
"""

import enum
from collections import OrderedDict
from collections.abc import Iterable

import trio

from node.event_log import EventLog
from node.ports import Entropy, Workers
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
INLINE_MAX = 2
"""Transactions checked where they are: at most 0.2 ms in which nothing else runs."""
SAMPLED_ONE_IN = 16
"""The share of certified transactions that is verified again: 200 forged ones in a block stay unseen once in 400,000 blocks."""


class _Look(enum.Enum):
    """How closely a transaction is looked at."""

    PARSE = enum.auto()
    """It was checked before."""
    UNSIGNED = enum.auto()
    """Everything but its signatures."""
    WHOLE = enum.auto()


class Verification:
    """The node's memory of what it has checked, and of who sent what does not hold."""

    def __init__(
        self, network: NetworkId, workers: Workers, log: EventLog, sampling: Entropy | None = None
    ) -> None:
        """`sampling` draws which certified transactions are verified again; without it all of them are."""
        self._network = network
        self._sampling = sampling
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

    async def check_certified(self, raw: tuple[bytes, ...]) -> Entries:
        """As `check_transactions`, for those of blocks that a certificate covers: a share of the signatures may do.

        Raises:
            RemoteFault: one of them does not hold; none is taken.
        """
        if self._sampling is None:
            return await self.check_transactions(raw)
        drawn = self._sampling.bytes(len(raw))
        return _all_held(await self._verdicts(raw, tuple([byte % SAMPLED_ONE_IN == 0 for byte in drawn])))

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

    async def _verdicts(
        self, raw: tuple[bytes, ...], verified: tuple[bool, ...] | None = None
    ) -> "tuple[_Verdict, ...]":
        """Return what each transaction turns out to be; `verified` says of which the signatures are, when not of all."""
        verified = verified or (True,) * len(raw)
        if len(raw) <= INLINE_MAX:
            # A hand-over to a thread and back costs as much as the check, and waits twice for a processor.
            digests, looks = self._recall(raw, verified)
            verdicts = _check_part(raw, looks, self._network)
            self._remember(digests, looks, verdicts)
            return verdicts
        starts = range(0, len(raw), _PER_THREAD)
        checked: list[tuple[_Verdict, ...]] = [()] * len(starts)

        async def check(index: int, part: slice) -> None:
            digests, looks = self._recall(raw[part], verified[part])
            checked[index] = await self._workers.run(_check_part, raw[part], looks, self._network)
            self._remember(digests, looks, checked[index])

        async with trio.open_nursery() as nursery:
            for index, start in enumerate(starts):
                nursery.start_soon(check, index, slice(start, start + _PER_THREAD))
        return tuple([verdict for part in checked for verdict in part])

    def _recall(
        self, raw: tuple[bytes, ...], verified: tuple[bool, ...]
    ) -> tuple[tuple[Digest, ...], tuple[_Look, ...]]:
        digests = tuple([sha256(entry) for entry in raw])
        looks = [
            _Look.PARSE if digest in self._known else _Look.WHOLE if is_verified else _Look.UNSIGNED
            for digest, is_verified in zip(digests, verified, strict=True)
        ]
        return digests, tuple(looks)

    def _remember(
        self, digests: tuple[Digest, ...], looks: tuple[_Look, ...], verdicts: "tuple[_Verdict, ...]"
    ) -> None:
        for digest, look, verdict in zip(digests, looks, verdicts, strict=True):
            if look is _Look.WHOLE and not isinstance(verdict, RemoteFault):
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
    entries: tuple[bytes, ...], looks: tuple[_Look, ...], network: NetworkId
) -> tuple[_Verdict, ...]:
    return tuple([_check_one(raw, network, look) for raw, look in zip(entries, looks, strict=True)])


def _check_one(raw: bytes, network: NetworkId, look: _Look) -> _Verdict:
    try:
        if look is _Look.PARSE:
            return transaction.parse(raw, network)
        return transaction.check(raw, network, signatures=look is _Look.WHOLE)
    except RemoteFault as fault:
        return fault
