"""`python -m simulations.lying_daemon`: a daemon as `carechain run` starts it, real sockets and databases, that lies.

    python -m simulations.lying_daemon --lie equivocate run --home HOME --genesis FILE

Between everything that a daemon is and its network stands the liar of the simulated worlds (`simulations.liar`): what the core
wants sent leaves changed, and what comes back is seen by the liar first. It also wants to lead: it hears nobody else ask for
votes, so that whoever cannot win without it does not win. For networks of founders without a passphrase; for tests only.
"""

import argparse
import functools
import os
import secrets
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import trio

from node import config, daemon, identity
from node.card_file import genesis_text, read_genesis
from node.consensus_reception import CHANNEL
from node.home import Home, write_atomically
from node.ports import PeerTransport
from protocol import codec
from protocol.configuration import network_id
from protocol.errors import CarechainError, Refused
from protocol.identifiers import NodeId
from protocol.raft.messages import Message, PreVote, RequestVote
from protocol.signing import SigningKey
from simulations.liar import Liar, Lie

if TYPE_CHECKING:
    from storage.keystore import Keystore

_Inbox = trio.MemoryReceiveChannel[tuple[NodeId, bytes]]


class LyingTransport:
    """A `ports.PeerTransport` that is another one, but for what is said about consensus."""

    def __init__(self, truth: PeerTransport, liar: Liar) -> None:
        self.me = truth.me
        self.call, self.fetch = truth.call, truth.fetch
        self.serve, self.serve_stream = truth.serve, truth.serve_stream
        self.publish, self.subscribe = truth.publish, truth.subscribe
        self.peers, self.addresses = truth.peers, truth.addresses
        self._truth = truth
        self._liar = liar
        self._seen: trio.MemorySendChannel[tuple[NodeId, bytes]] | None = None

    def send(self, peer: NodeId, channel: str, body: bytes) -> None:
        """Send what the liar says in the place of a message."""
        if channel != CHANNEL:
            self._truth.send(peer, channel, body)
            return
        message: Message = codec.decode_union(body, Message)
        for said in self._liar.outgoing(peer, message):
            self._truth.send(peer, channel, body if said is message else codec.encode(said))

    def inbox(self, channel: str, size: int) -> _Inbox:
        """Return the queue of messages that the core gets to see."""
        if channel != CHANNEL:
            return self._truth.inbox(channel, size)
        is_first = self._seen is None
        self._seen, inbox = trio.open_memory_channel[tuple[NodeId, bytes]](size)
        if is_first:
            # A transport's inbox is asked for by whoever reads it, who starts no tasks for it: this one ends with the program.
            trio.lowlevel.spawn_system_task(self._hear, self._truth.inbox(channel, size))
        return inbox

    async def _hear(self, inbox: _Inbox) -> None:
        async for source, body in inbox:
            try:
                message: Message = codec.decode_union(body, Message)
            except CarechainError:
                continue  # nothing that this program's own members send
            if isinstance(message, PreVote | RequestVote) and self._liar.lie is not Lie.DOUBLE_VOTE:
                continue
            seen, said = self._liar.incoming(source, message)
            for one in said:
                for peer in self.peers():
                    self._truth.send(peer.node, CHANNEL, codec.encode(one))
            if seen is not None:
                self._show(source, body if seen is message else codec.encode(seen))

    def _show(self, source: NodeId, body: bytes) -> None:
        assert self._seen is not None, "nothing is heard before somebody wants to see it"
        try:
            self._seen.send_nowait((source, body))
        except (trio.WouldBlock, trio.BrokenResourceError):
            return  # full, or nobody reads now: lost, as a transport may


def run(home: Home, genesis_file: Path | None, lie: Lie, seed: int) -> None:
    """Serve until SIGTERM, lying.

    Raises:
        CarechainError: it cannot start, or cannot go on.
    """
    os.umask(0o077)
    settings = config.load(home.config)
    if genesis_file is None and not home.genesis.exists():
        raise Refused("this home has joined no network yet; name its --genesis")
    genesis = read_genesis(genesis_file or home.genesis)
    with home.lock(), identity.opened_keystore(home, None, secrets.token_bytes) as keystore:
        write_atomically(home.genesis, genesis_text(genesis).encode())
        liar = Liar(_node_key(keystore), network_id(genesis), genesis, lie, Random(seed))
        serve = functools.partial(
            daemon.serve, home, settings, genesis, keystore=keystore, rebuild=None, log_level="info",
            log_format="text", wire=lambda transport: LyingTransport(transport, liar),
        )  # fmt: skip
        trio.run(serve)


def _node_key(keystore: "Keystore") -> SigningKey:
    return SigningKey(identity.Identity.load(keystore).node)


def main(words: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.lying_daemon", description="A daemon that lies."
    )
    parser.add_argument("--lie", choices=[lie.name.lower() for lie in Lie], required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the liar's choices (default 0)")
    parser.add_argument("command", choices=["run"])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--genesis", type=Path)
    given = parser.parse_args(words)
    run(Home(given.home), given.genesis, Lie[given.lie.upper()], given.seed)


if __name__ == "__main__":
    main()
