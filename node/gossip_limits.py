"""What one member can make libp2p's gossip do: its messages, what it asks for, and whom it recommends.

Whoever gossips is a member, and may be hostile. Stock begins a task for each message, and for each looks through all others:
1.5 s of processor time for a frame of a thousand empty ones, and the square of it for more. It sends a message as often as
one request names it (2,800 times 64 KiB for one of 256 KiB), notes every topic that anybody mentions, and dials whom a
leaving neighbour recommends, whatever `do_px` says. An exception out of its parsing ends the whole process. Here a peer's
messages are taken one after the other: a flood waits behind itself. Addresses in it are ignored; they come with a Hello.
"""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.io.exceptions import IOException, MessageTooLarge
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from node.event_log import EventLog
from node.handshakes import Rates
from protocol import limits
from protocol.errors import Malformed

FRAME_BYTES_MAX = 256 * limits.KIB
"""Four messages of the longest kind; stock takes 1 MiB."""

Count = Callable[[str], None]
Control = Callable[[Any, Any], Awaitable[None]]

# libp2p is untyped here, as in libp2p_kit: Any.


def bound_gossip(pubsub: Any, gossip: Any, count: Count, log: EventLog) -> None:
    """Repair a pubsub and its router, before they run."""
    pubsub.push_msg = _bounded_push(pubsub, count, log)
    pubsub.continuously_read_stream = _reader(pubsub, gossip, count)
    for name in ("handle_graft", "handle_prune", "handle_ihave"):
        setattr(gossip, name, _of_our_topics(pubsub, getattr(gossip, name), count))
    gossip.handle_iwant = _bounded_answers(gossip.handle_iwant, count)
    gossip._do_px = _dial_nobody  # noqa: SLF001


def _rates(burst: int, per_s: float) -> Rates:
    return Rates(burst=burst, per_s=per_s, remembered=2 * limits.MEMBERS_MAX)


async def _dial_nobody(_recommended: Any) -> None:
    return None


def _reader(pubsub: Any, gossip: Any, count: Count) -> Callable[[Any], Awaitable[None]]:
    rates = _rates(limits.GOSSIP_SUBSCRIPTIONS_BURST, limits.GOSSIP_SUBSCRIPTIONS_PER_S)

    async def read(stream: Any) -> None:
        sender = stream.muxed_conn.peer_id
        with contextlib.suppress(
            IOException
        ):  # the stream ended; what a peer sends wrongly is told by other classes
            while True:
                frame = await _next_frame(stream)
                await take(sender, rpc_pb2.RPC.FromString(frame))

    async def take(sender: Any, frame: Any) -> None:
        for message in frame.publish:
            if pubsub._is_subscribed_to_msg(message):  # noqa: SLF001
                await pubsub.push_msg(sender, message)
                await trio.lowlevel.checkpoint()
        for subscription in frame.subscriptions:
            if not rates.take(bytes(sender.to_bytes()), trio.current_time()):
                count("gossip_subscriptions_dropped")
                break
            pubsub.handle_subscription(sender, subscription)
        if frame.HasField("control"):
            await gossip.handle_rpc(frame, sender)

    return read


async def _next_frame(stream: Any) -> bytes:
    try:
        return bytes(await read_varint_prefixed_bytes_limited(stream, FRAME_BYTES_MAX))
    except MessageTooLarge as error:
        raise Malformed(str(error)) from None


def _bounded_push(pubsub: Any, count: Count, log: EventLog) -> Control:
    push, busy = pubsub.push_msg, set[bytes]()
    rates = _rates(limits.GOSSIP_FROM_PEER_BURST, limits.GOSSIP_FROM_PEER_PER_S)

    async def guarded_push(forwarder: Any, message: Any) -> None:
        if forwarder != pubsub.my_id and not rates.take(bytes(forwarder.to_bytes()), trio.current_time()):
            count("gossip_dropped_too_many")
            return
        identity = pubsub.get_message_id(message)
        if identity in busy:  # stock marks a message as seen only after it was validated
            return
        busy.add(identity)
        try:
            await push(forwarder, message)
        except Exception as error:  # noqa: BLE001 - a hostile key or signature raises what its parser raises
            count("gossip_malformed")
            log.info("gossip message refused", error=type(error).__name__)
        finally:
            busy.discard(identity)

    return guarded_push


def _of_our_topics(pubsub: Any, handle: Control, count: Count) -> Control:
    async def handle_ours(control: Any, sender: Any) -> None:
        if control.topicID in pubsub.subscribed_topics_receive:
            await handle(control, sender)
        else:
            count("gossip_of_no_topic")

    return handle_ours


def _bounded_answers(handle: Control, count: Count) -> Control:
    rates = _rates(limits.GOSSIP_ANSWERS_BURST, limits.GOSSIP_ANSWERS_PER_S)

    async def answer(wanted: Any, sender: Any) -> None:
        whom, now = bytes(sender.to_bytes()), trio.current_time()
        named = dict.fromkeys(wanted.messageIDs)
        kept = [message_id for message_id in named if rates.take(whom, now)]
        if len(kept) < len(wanted.messageIDs):
            count("gossip_answers_cut")
        await handle(rpc_pb2.ControlIWant(messageIDs=kept), sender)

    return answer
