"""Checks transactions and blocks in worker threads, each transaction once per node however it arrives.

That a transaction holds is remembered by the hash of its bytes, so that what was checked when a client submitted it is
not verified again in the block that orders it. Only good verdicts are kept; the memory is bounded.
"""

from collections import OrderedDict

import trio

from node.event_log import EventLog
from node.ports import Workers
from protocol import block as blocks
from protocol import transaction
from protocol.block import Block, Entries
from protocol.errors import RemoteFault
from protocol.identifiers import Digest, NetworkId, NodeId
from protocol.signing import sha256

_VERDICTS_MAX = 16_384
_PER_THREAD = 64
"""Transactions checked per hand-over to a thread: the hand-over costs as much as one signature."""


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
        parts = [raw[start : start + _PER_THREAD] for start in range(0, len(raw), _PER_THREAD)]
        checked: list[Entries] = [()] * len(parts)
        faults: list[RemoteFault] = []

        async def check(index: int) -> None:
            digests = tuple([sha256(entry) for entry in parts[index]])
            known = tuple([digest in self._known for digest in digests])
            try:
                checked[index] = await self._workers.run(_check_part, parts[index], known, self._network)
            except RemoteFault as fault:
                faults.append(fault)
                return
            for digest in digests:
                self._known[digest] = None
            while len(self._known) > _VERDICTS_MAX:
                self._known.popitem(last=False)

        async with trio.open_nursery() as nursery:
            for index in range(len(parts)):
                nursery.start_soon(check, index)
        if faults:
            raise faults[0]
        return tuple([entry for part in checked for entry in part])

    async def check_block(self, block: Block) -> None:
        """Check a block's body (P2).

        Raises:
            RemoteFault: what does not hold.
        """
        entries = await self.check_transactions(block.transactions)
        await self._workers.run(blocks.check_body, block, entries)

    def reject(self, sender: NodeId, fault: RemoteFault) -> None:
        """Count and log what a peer sent against the protocol; the message is dropped, the peer carries on."""
        self.faults[sender] = self.faults.get(sender, 0) + 1
        self._log.warning(
            "peer broke the protocol", peer=sender.hex()[:16], fault=str(fault), count=self.faults[sender]
        )


def _check_part(entries: tuple[bytes, ...], known: tuple[bool, ...], network: NetworkId) -> Entries:
    return tuple(
        [
            transaction.parse(raw, network) if is_known else transaction.check(raw, network)
            for raw, is_known in zip(entries, known, strict=True)
        ]
    )
