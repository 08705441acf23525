"""Our muxer with py-libp2p's own at the other end, over the library's own session there: bytes pass both ways at once."""

import random
from typing import Any

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.stream_muxer.yamux.yamux import Yamux as StockYamux

from node.noise_session import NoiseSession
from node.yamux import Yamux
from protocol import limits
from tests.node.secure_pair import stock_pair

SIZE = 5 * limits.MIB


async def write(stream: Any, data: bytes) -> None:
    for start in range(0, len(data), 50_000):
        await stream.write(data[start : start + 50_000])
    await stream.close()


async def read(stream: Any, into: bytearray) -> None:
    with pytest.raises(MuxedStreamEOF):
        await read_to_the_end(stream, into)


async def read_to_the_end(stream: Any, into: bytearray) -> None:
    while True:
        part = await stream.read(65_536)
        if not part:
            raise MuxedStreamEOF("told by an empty read")
        into += part


@pytest.mark.parametrize("ours_dials", [True, False])
async def test_five_mebibytes_pass_both_ways(ours_dials: bool) -> None:
    there, back = random.Random(1).randbytes(SIZE), random.Random(2).randbytes(SIZE)
    arrived, returned = bytearray(), bytearray()
    async with stock_pair() as ends, trio.open_nursery() as nursery:
        sessions = [NoiseSession(ends[0]), ends[1]] if ours_dials else [ends[0], NoiseSession(ends[1])]
        muxers: list[Any] = [
            Yamux(session, ID(b"peer"), at == 0)
            if isinstance(session, NoiseSession)
            else StockYamux(session, ID(b"peer"), at == 0)
            for at, session in enumerate(sessions)
        ]
        for muxed in muxers:
            nursery.start_soon(muxed.start)
            await muxed.event_started.wait()
        with trio.fail_after(120):
            one = await muxers[0].open_stream()
            other = await muxers[1].accept_stream()
            async with trio.open_nursery() as transfers:
                transfers.start_soon(write, one, there)
                transfers.start_soon(write, other, back)
                transfers.start_soon(read, other, arrived)
                transfers.start_soon(read, one, returned)
            await muxers[not ours_dials].close()  # ours says farewell
            for muxed in muxers:
                await muxed.event_closed.wait()
        nursery.cancel_scope.cancel()
    assert arrived == there
    assert returned == back
