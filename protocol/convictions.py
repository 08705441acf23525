"""What evidence does to ledger state: one row for each member and kind, written once, whoever reports it.

A row says what was proven, not what follows from it: members vote on that (`governance`). Configurations that are no longer
in force are kept by digest, because certificates and blocks in evidence were made under them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

from protocol import codec, evidence
from protocol.block import Header, config_hash_above
from protocol.codec import Size, wire
from protocol.configuration import Configuration
from protocol.errors import Refused, RemoteFault
from protocol.evidence import Conviction, Evidence
from protocol.evidence_blocks import InvalidBlock
from protocol.evidence_certificates import ConflictingCertificates, FalseBase
from protocol.evidence_trees import OtherTree
from protocol.identifiers import Digest, Height, NodeId, Txid

CONVICTED_PREFIX = b"c"
"""What the keys of all convictions begin with; node and kind follow."""
_PAST_CONFIGURATION = b"j"
_CLEARED = b"i"
_REASON_LENGTH_MAX = 150


@wire("convicted")
@dataclass(frozen=True, slots=True)
class Convicted:
    """A member, and what it is convicted of. `about` is the height that the evidence speaks of, `height` the block's that says so.

    `claim` as in `Conviction`; `txid` the transaction that holds the evidence.
    """

    node: Annotated[NodeId, Size(32)]
    kind: Annotated[str, Size(1, 4)]
    about: Height
    claim: Annotated[Digest, Size(32)]
    height: Height
    time_ms: int
    txid: Annotated[Txid, Size(32)]


def convicted_key(node: NodeId, kind: str) -> bytes:
    """Return the row that says of a member that it is convicted."""
    return CONVICTED_PREFIX + node + kind.encode()


def cleared_key(node: NodeId, claim: Digest) -> bytes:
    """Return the row that says of a member's claim that a certificate has made it final: it is not held against it again."""
    return _CLEARED + node + claim


def past_configuration_key(digest: Digest) -> bytes:
    """Return the row of a configuration that was in force before."""
    return _PAST_CONFIGURATION + digest


class Convicting:
    """The rows about evidence as seen inside one block, by its header: read by `get`, written to `writes`."""

    def __init__(
        self,
        get: Callable[[bytes], bytes | None],
        writes: dict[bytes, bytes | None],
        configuration: Configuration,
        header: Header,
    ) -> None:
        self._get = get
        self._writes = writes
        self._configuration = configuration
        self._header = header

    def leave(self) -> None:
        """Keep the configuration that this block replaces."""
        key = past_configuration_key(self._configuration.digest)
        self._writes[key] = codec.encode(self._configuration)

    def accuse(self, raw: bytes, txid: Txid) -> None:
        """Write what the evidence proves.

        Raises:
            Refused: it proves nothing, or nothing new.
        """
        try:
            found = evidence.decode(raw)
            conviction = evidence.check(found, self._header.net, self._known(found))
        except RemoteFault as fault:
            raise Refused(f"no evidence: {fault}"[:_REASON_LENGTH_MAX]) from None
        news = [node for node in conviction.nodes if self._get(convicted_key(node, conviction.kind)) is None]
        if any(self._get(cleared_key(node, conviction.claim)) is not None for node in news):
            raise Refused("a certificate has cleared the member of this")
        cleared = self._cleared(found, conviction)
        if not news and not cleared:
            raise Refused("it is on record already")
        for one in cleared:
            self._writes[convicted_key(one.node, one.kind)] = None
            self._writes[cleared_key(one.node, one.claim)] = b""
        for node in news:
            row = Convicted(
                node,
                conviction.kind,
                conviction.height,
                conviction.claim,
                self._header.height,
                self._header.time_ms,
                txid,
            )
            self._writes[convicted_key(node, conviction.kind)] = codec.encode(row)

    def _cleared(self, found: Evidence, conviction: Conviction) -> list[Convicted]:
        """Return the convictions of the member whose claim these certificates make final."""
        if not isinstance(found, ConflictingCertificates) or conviction.cleared is None:
            return []
        rows = [self._get(convicted_key(conviction.cleared, kind)) for kind in evidence.CLEARABLE]
        held = [codec.decode(row, Convicted) for row in rows if row is not None]
        return [one for one in held if found.clears(one.claim)]

    def _known(self, found: Evidence) -> dict[Digest, Configuration]:
        known = {self._configuration.digest: self._configuration}
        for digest in configurations_named(found):
            row = self._get(past_configuration_key(digest))
            if row is not None:
                known[digest] = codec.decode(row, Configuration)
        return known


def configurations_named(found: Evidence) -> frozenset[Digest]:
    """Return the digests of the configurations under which evidence has to be checked."""
    match found:
        case FalseBase() | OtherTree():
            headers = [found.certificate.header]
        case ConflictingCertificates():
            headers = [found.one.header, found.other.header]
        case InvalidBlock():
            headers = [found.predecessor]
        case _:
            return frozenset()
    return frozenset(
        digest for header in headers for digest in (header.config_hash, config_hash_above(header))
    )


def rows_of(rows: Iterable[tuple[bytes, bytes]]) -> tuple[Convicted, ...]:
    """Return the convictions in rows that begin with `CONVICTED_PREFIX`, oldest first."""
    found = [codec.decode(row, Convicted) for _, row in rows]
    return tuple(sorted(found, key=lambda one: (one.height, one.node, one.kind)))
