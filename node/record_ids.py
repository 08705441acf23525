"""Records as people name them: a full id, or the beginning of one."""

from collections.abc import Sequence

from node.vaults import NOT_YOURS
from protocol.errors import Forbidden, Refused
from protocol.identifiers import Rid
from protocol.ledger_rows import record_key
from storage.key_value import KeyValue
from storage.keyspace import prefix_range

_PREFIX_MIN = 4
_ID_CHARACTERS = 64
_CANDIDATES_MAX = 64


def prefix_of(text: str) -> str:
    """Return what was typed as the lower-case beginning of an id.

    Raises:
        Forbidden: it begins no id; the sentence is that of a record which is not there.
    """
    prefix = text.strip().lower()
    if not _PREFIX_MIN <= len(prefix) <= _ID_CHARACTERS or set(prefix) - set("0123456789abcdef"):
        # A misspelt id names no record; why it does not is nobody's business.
        raise Forbidden(NOT_YOURS)
    return prefix


def records_beginning(rows: KeyValue, state_prefix: bytes, prefix: str) -> Sequence[Rid]:
    """Return the records on the ledger whose ids begin like that; of a full id that one, there or not.

    `state_prefix` is that of the rows of ledger state in use (`LedgerStore.state_prefix`).

    Raises:
        Refused: too many; more of the id is needed.
    """
    if len(prefix) == _ID_CHARACTERS:
        return [Rid(bytes.fromhex(prefix))]
    whole = bytes.fromhex(prefix[: len(prefix) // 2 * 2])
    base = state_prefix + record_key(Rid(b""))
    found = []
    for row, _ in rows.scan(*prefix_range(base + whole)):
        rid = Rid(row[len(base) :])
        if rid.hex().startswith(prefix):
            found.append(rid)
            if len(found) > _CANDIDATES_MAX:
                raise Refused("that is too short a part of a record's id; give more of it")
    return found
