"""What a stranger can make us do before it has proved who it is: bounded for each address, and for all of them.

Three things of py-libp2p's handshake let a single connection harm a host, with a test each in tests/node/test_handshakes.py:

- *A name of any length.* While protocols are negotiated it reads what a length of 64 bits announces, 80 MiB and more, into
  memory. Here a name has `limits.PROTOCOL_NAME_BYTES_MAX`.
- *A key of any kind.* An RSA key of 30 KB takes it three seconds of processor time to refuse. Here identities are Ed25519 keys.
- *As many handshakes as somebody likes.* Each costs milliseconds, of the one thread that consensus runs in.
"""

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import Any

import libp2p.crypto.serialization as serialization_module
import libp2p.protocol_muxer.multiselect_communicator as communicator_module
import trio
from libp2p.crypto.keys import KeyType
from libp2p.exceptions import ParseError
from libp2p.io.utils import read_exactly
from libp2p.utils import decode_uvarint_from_stream

from protocol import limits

_IPV6_NETWORK_BITS = 64


class HalfOpenHandshakes:
    """Inbound connections that have not proved who they are, oldest first.

    At the bound of an address, or of all, the oldest is cancelled in favour of the new one: an honest handshake
    takes milliseconds, a slow one is what an attacker has.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[int, tuple[str, trio.CancelScope]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, key: int, address: str, scope: trio.CancelScope) -> None:
        """Register a connection; cancels the scope of the one that has to give way."""
        same = [other for other, (known, _) in self._open.items() if known == address]
        if len(same) >= limits.HALF_OPEN_PER_ADDRESS_MAX:
            self._open.pop(same[0])[1].cancel()
        elif len(self._open) >= limits.HALF_OPEN_MAX:
            self._open.popitem(last=False)[1][1].cancel()
        self._open[key] = (address, scope)

    def release(self, key: int) -> None:
        """Forget a connection: it proved who it is, or it ended."""
        self._open.pop(key, None)


class Rates:
    """How often something was done for whom: `burst` times at once, and `per_s` times a second in the long run.

    Of those who ask, the `remembered` newest are kept; one that is forgotten begins with a whole burst.
    """

    def __init__(self, *, burst: int, per_s: float, remembered: int) -> None:
        self._burst = burst
        self._per_s = per_s
        self._remembered = remembered
        self._left: OrderedDict[str | bytes, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left)

    def take(self, whom: str | bytes, now: float) -> bool:
        """Return whether it may be done once more at `now`, in seconds of a clock that does not go back."""
        left, seen = self._left.pop(whom, (float(self._burst), now))
        left = min(float(self._burst), left + (now - seen) * self._per_s)
        may = left >= 1
        self._left[whom] = (left - may, now)
        if len(self._left) > self._remembered:
            self._left.popitem(last=False)
        return may


def handshake_rates() -> Rates:
    """Return the rates of inbound handshakes by address."""
    return Rates(
        burst=limits.HANDSHAKES_PER_ADDRESS_BURST,
        per_s=limits.HANDSHAKES_PER_ADDRESS_PER_S,
        remembered=limits.HANDSHAKE_ADDRESSES_MAX,
    )


def origin(address: str) -> str:
    """Return what is counted as one address: of IPv6 the /64, which is the least that one subscriber has."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{IPv6Address(int(parsed) >> _IPV6_NETWORK_BITS << _IPV6_NETWORK_BITS)}/{_IPV6_NETWORK_BITS}"


def bound_handshakes() -> None:
    """Repair what is read and believed of strangers, in this process."""
    communicator_module.read_delim = _read_name
    known: dict[Any, Any] = serialization_module.key_type_to_public_key_deserializer
    for kind in set(known) - {KeyType.Ed25519.value}:
        del known[kind]


async def _read_name(reader: Any) -> bytes:
    """Return one line of the negotiation of protocols, in place of libp2p's `read_delim`."""
    size = await decode_uvarint_from_stream(reader)
    if not 0 < size <= limits.PROTOCOL_NAME_BYTES_MAX:
        raise ParseError(f"a protocol name of {size} bytes is outside 1..{limits.PROTOCOL_NAME_BYTES_MAX}")
    line = bytes(await read_exactly(reader, size))
    if line[-1:] != b"\n":
        raise ParseError("a protocol name without its end of line")
    return line[:-1]
