"""Checks transactions and blocks in worker threads, each transaction once per node however it arrives.

The signatures of a long catch-up are verified in processes instead (`signature_processes`), while those run.

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
from node.signature_processes import SignatureProcesses
from protocol import block as blocks
from protocol import claims, transaction
from protocol.block import Block, Entries
from protocol.claims import Claim
from protocol.errors import Invalid, RemoteFault
from protocol.identifiers import Digest, NetworkId, NodeId, Txid
from protocol.signing import sha256
from protocol.transaction import SignedTransaction

_VERDICTS_MAX = 16_384
_PER_THREAD = 64
"""Transactions checked per hand-over to a thread: the hand-over costs as much as one signature."""
INLINE_MAX = 64
"""Transactions checked where they are. One thread is no faster, and gives the interpreter lock back at every signature and
waits for it again: beside a busy event loop the same check took it two to four times as long."""
_AT_ONCE = 16
"""Of those, how many before others may run: they take about 2 ms."""
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
        self,
        network: NetworkId,
        workers: Workers,
        log: EventLog,
        sampling: Entropy | None = None,
        processes: SignatureProcesses | None = None,
    ) -> None:
        """`sampling` draws which certified transactions are verified again; without it all of them are.

        `processes` verify certified transactions while they run; whoever has many of them runs them.
        """
        self.processes = processes
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
        verified = None
        if self._sampling is not None:
            verified = tuple([byte % SAMPLED_ONE_IN == 0 for byte in self._sampling.bytes(len(raw))])
        if self.processes is not None and self.processes.are_running:
            return _all_held(await self._verdicts_apart(raw, verified, self.processes))
        return _all_held(await self._verdicts(raw, verified))

    async def check_leaders(self, certified: tuple[Block, ...], claimed: list[Claim]) -> None:
        """Check the signatures under blocks' headers, in the order of these blocks.

        Raises:
            Invalid: one of them does not verify.
        """
        starts = range(0, len(claimed), _PER_THREAD)
        held = [False] * len(starts)

        async def look(index: int, part: list[Claim]) -> None:
            # What no process confirms is looked at here; nobody else's word finds fault.
            is_held = self.processes is not None and await self.processes.hold(part)
            held[index] = is_held or await self._workers.run(claims.hold, part)

        async with trio.open_nursery() as nursery:
            for index, start in enumerate(starts):
                nursery.start_soon(look, index, claimed[start : start + _PER_THREAD])
        if not all(held):
            raise Invalid(
                f"blocks {certified[0].height} to {certified[-1].height}: a leader's signature does not verify"
            )

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
            return await self._verdicts_here(raw, verified)
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

    async def _verdicts_apart(
        self, raw: tuple[bytes, ...], verified: tuple[bool, ...] | None, processes: SignatureProcesses
    ) -> "tuple[_Verdict, ...]":
        """As `_verdicts`, the signatures in other processes. What they say holds is not remembered: it is met only once."""
        verified = verified or (True,) * len(raw)
        starts = range(0, len(raw), _PER_THREAD)
        checked: list[tuple[_Verdict, ...]] = [()] * len(starts)

        async def look(index: int, part: slice, claimed: list[Claim]) -> None:
            if not await processes.hold(claimed):
                # Which one is wrong, and whether any is, or only the process: that is seen by looking here.
                looks = tuple([_Look.WHOLE if each else _Look.UNSIGNED for each in verified[part]])
                checked[index] = await self._workers.run(_check_part, raw[part], looks, self._network)

        async with trio.open_nursery() as nursery:
            for index, start in enumerate(starts):
                part = slice(start, start + _PER_THREAD)
                # Not in a thread, which would hold the interpreter lock just as well: a piece takes a millisecond.
                checked[index], claimed = _check_claiming(raw[part], verified[part], self._network)
                if claimed:
                    nursery.start_soon(look, index, part, claimed)
                await trio.lowlevel.checkpoint()
        return tuple([verdict for part in checked for verdict in part])

    async def _verdicts_here(
        self, raw: tuple[bytes, ...], verified: tuple[bool, ...]
    ) -> "tuple[_Verdict, ...]":
        found: list[_Verdict] = []
        for start in range(0, len(raw), _AT_ONCE):
            if start:
                await trio.lowlevel.checkpoint()
            part = slice(start, start + _AT_ONCE)
            digests, looks = self._recall(raw[part], verified[part])
            verdicts = _check_part(raw[part], looks, self._network)
            self._remember(digests, looks, verdicts)
            found += verdicts
        return tuple(found)

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


def _check_claiming(
    entries: tuple[bytes, ...], verified: tuple[bool, ...], network: NetworkId
) -> tuple[tuple[_Verdict, ...], list[Claim]]:
    """Check everything but signatures; return the verdicts, and what is claimed by those that are to be verified."""
    verdicts: list[_Verdict] = []
    claimed: list[Claim] = []
    for raw, is_verified in zip(entries, verified, strict=True):
        try:
            signed, txid, its = claims.check(raw, network)
        except RemoteFault as fault:
            verdicts.append(fault)
        else:
            verdicts.append((signed, txid))
            claimed += its if is_verified else ()
    return tuple(verdicts), claimed


def _check_one(raw: bytes, network: NetworkId, look: _Look) -> _Verdict:
    try:
        if look is _Look.PARSE:
            return transaction.parse(raw, network)
        return transaction.check(raw, network, signatures=look is _Look.WHOLE)
    except RemoteFault as fault:
        return fault
