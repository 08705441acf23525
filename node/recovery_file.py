"""The files that organisations send each other after the loss of a majority: freeze statements, a plan, consents to it.

JSON that shows what it is, with the value itself as base64 of its canonical encoding: only that counts.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Annotated, TypeVar

from protocol import codec, limits
from protocol.codec import Size, wire
from protocol.configuration import Configuration
from protocol.errors import Malformed, Refused
from protocol.identifiers import NetworkId
from protocol.recovery import FreezeStatement, Recovery, RecoverySignature

T = TypeVar("T", "Collected", "Plan", "Consent")

FILE_BYTES_MAX = 16 * limits.MIB
_VERSION = 1
NetworkField = Annotated[NetworkId, Size(32)]


@wire("freeze-statements")
@dataclass(frozen=True, slots=True)
class Collected:
    """What `recover collect` writes: the checked statements of those who have answered."""

    network: NetworkField
    statements: Annotated[tuple[FreezeStatement, ...], Size(0, limits.MEMBERS_MAX)]


@wire("recovery-plan")
@dataclass(frozen=True, slots=True)
class Plan:
    """What `recover propose` writes: the step that organisations consent to, and the configuration it starts from.

    `earlier` is the one before that, if nobody is known to have a certificate of the block between: its organisations have
    to consent too.
    """

    network: NetworkField
    before: Configuration
    recovery: Recovery
    earlier: Configuration | None


@wire("recovery-consent")
@dataclass(frozen=True, slots=True)
class Consent:
    """What `recover sign` writes: one organisation's consent to a plan, as one of `before` and as one of `earlier`."""

    network: NetworkField
    signature: RecoverySignature | None
    earlier: RecoverySignature | None


def file_text(value: Collected | Plan | Consent) -> str:
    """Return the JSON text of a file."""
    fields = {
        "version": _VERSION,
        "kind": codec.tag_of(type(value)),
        "network": value.network.hex(),
        "data": base64.b64encode(codec.encode(value)).decode(),
    }
    return json.dumps(fields, indent=2) + "\n"


def parse_file(text: str, kind: type[T], network: NetworkId) -> T:
    """Return the value in a file of this network.

    Raises:
        Refused: it is no such file, altered, or of another network.
    """
    what = codec.tag_of(kind)
    try:
        fields = json.loads(text) if len(text) <= FILE_BYTES_MAX else None
        if not isinstance(fields, dict) or (fields.get("version"), fields.get("kind")) != (_VERSION, what):
            raise ValueError("another kind of file")
        value = codec.decode(base64.b64decode(fields["data"], validate=True), kind)
    except (Malformed, KeyError, TypeError, ValueError, RecursionError, binascii.Error):
        raise Refused(f"one of the files holds no {what}, or was altered; ask for it again") from None
    if value.network != network:
        raise Refused(f"the {what} is of network {value.network.hex()[:16]}, and this one is another")
    return value
