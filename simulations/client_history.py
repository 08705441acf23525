"""What clients asked of vaults and were told, and what a vault that does one thing at a time would have told them.

The operations are those of consent: open a vault, grant, revoke, rotate the epoch, and the linearizable read of a vault's
state. `ClientHistory` records them, `VaultModel` says which answers a single vault could have given, `linearizability.check`
joins the two. Recorder and model know no simulation; `read_vault` is how a client inside one reads.

```python
history = ClientHistory(time.monotonic_ns)
asked = history.call(client, GrantAccess(vid, gid, epoch=0))   # before the request leaves
asked.returned(receipt.verdict)                                # after the answer came; or never: unknown
verdict = check(history.operations(), VaultModel(), is_read=is_read)
```
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from node.core import Core
from protocol.identifiers import Vid
from protocol.ledger_rows import ACCEPTED, GRANTS_PER_VAULT_MAX, Vault
from simulations.linearizability import UNKNOWN_RETURN, Operation

REFUSED_BY_TIME = ("refused: expired", "refused: valid for longer than a day")
"""Refusals that say nothing about the vault: possible in every state, without effect."""
_GRANTS_SHOWN = 8


def _short(name: bytes) -> str:
    return name.hex()[:8]


@dataclass(frozen=True, slots=True)
class OpenVault:
    """Open a vault. `key` is its category key, or b"" where reads do not show it."""

    vid: bytes
    key: bytes = b""

    def __str__(self) -> str:
        return f"open {_short(self.vid)}"


@dataclass(frozen=True, slots=True)
class GrantAccess:
    """Grant access in an epoch. `gid` is what reads call the grant."""

    vid: bytes
    gid: bytes
    epoch: int

    def __str__(self) -> str:
        return f"grant {_short(self.gid)} in epoch {self.epoch}"


@dataclass(frozen=True, slots=True)
class RevokeGrant:
    """End a grant."""

    vid: bytes
    gid: bytes

    def __str__(self) -> str:
        return f"revoke {_short(self.gid)}"


@dataclass(frozen=True, slots=True)
class RotateEpoch:
    """Begin epoch `epoch`, the present one plus 1, with a new category key."""

    vid: bytes
    epoch: int
    key: bytes = b""

    def __str__(self) -> str:
        return f"rotate to epoch {self.epoch}"


@dataclass(frozen=True, slots=True)
class ReadVault:
    """Read a vault's state, not older than the call."""

    vid: bytes

    def __str__(self) -> str:
        return "read"


VaultOperation = OpenVault | GrantAccess | RevokeGrant | RotateEpoch | ReadVault


@dataclass(frozen=True, slots=True)
class VaultState:
    """A vault as a read shows it; `NO_VAULT` before it is opened. Grants live until revoked: none may expire meanwhile."""

    epoch: int
    key: bytes = b""
    grants: frozenset[bytes] = frozenset()

    def __str__(self) -> str:
        if self == NO_VAULT:
            return "no vault"
        shown = ", ".join(sorted(map(_short, self.grants))[:_GRANTS_SHOWN])
        more = f" and {len(self.grants) - _GRANTS_SHOWN} more" if len(self.grants) > _GRANTS_SHOWN else ""
        return f"epoch {self.epoch} with grants {{{shown}}}{more}"

    @classmethod
    def of(cls, row: Vault | None) -> "VaultState":
        """Return what a vault's row shows, or `NO_VAULT` where there is none."""
        return cls(row.epoch, row.cat_pk, frozenset(row.grants)) if row is not None else NO_VAULT


NO_VAULT = VaultState(-1)

VaultAnswer = str | VaultState
"""To a change: the receipt's verdict, "accepted" or "refused: reason". To a read: the state."""


class VaultModel:
    """A vault that does one operation at a time: the sequential model of `protocol.ledger_state`, written apart from it."""

    def initial(self) -> VaultState:
        """Return that there is no vault."""
        return NO_VAULT

    def part_of(self, asked: VaultOperation) -> bytes:
        """Return the vault's id: vaults do not touch each other."""
        return asked.vid

    def step(self, state: VaultState, asked: VaultOperation, output: VaultAnswer | None) -> VaultState | None:
        """Return the state after an operation with this answer, or None where a vault would have answered otherwise."""
        if isinstance(asked, ReadVault):
            return state if output in (None, state) else None
        after = _changed(state, asked)
        if output in (None, ACCEPTED):
            return after
        if after is None or output in REFUSED_BY_TIME:
            return state
        return None  # refused what it had to accept


def is_read(asked: VaultOperation, output: VaultAnswer) -> bool:
    """Return whether this leaves a vault as it is wherever it may happen: a read, or a refusal (for `check`)."""
    return isinstance(asked, ReadVault) or output != ACCEPTED


def _changed(
    state: VaultState, asked: OpenVault | GrantAccess | RevokeGrant | RotateEpoch
) -> VaultState | None:
    """Return the state after a change that is accepted, or None where it must be refused."""
    match asked:
        case OpenVault():
            return VaultState(0, asked.key) if state == NO_VAULT else None
        case GrantAccess():
            may = state.epoch == asked.epoch >= 0 and len(state.grants) < GRANTS_PER_VAULT_MAX
            return replace(state, grants=state.grants | {asked.gid}) if may else None
        case RevokeGrant():
            return replace(state, grants=state.grants - {asked.gid}) if asked.gid in state.grants else None
        case RotateEpoch():
            may = state != NO_VAULT and asked.epoch == state.epoch + 1
            return replace(state, epoch=asked.epoch, key=asked.key) if may else None


@dataclass(slots=True)
class Asked:
    """An operation under way. Left alone, its outcome stays unknown: it may have taken effect, or may yet."""

    history: "ClientHistory"
    client: int | str
    call: float
    input: VaultOperation
    ret: float = UNKNOWN_RETURN
    output: VaultAnswer | None = None

    def returned(self, output: VaultAnswer) -> None:
        """Note the answer, at the moment when the client has it."""
        assert self.output is None, "an operation is answered once"
        self.ret, self.output = self.history.now(), output

    def withdraw(self) -> None:
        """Take it out of the history: it certainly never took effect, as a read without an answer."""
        self.history.withdraw(self)


@dataclass(slots=True)
class ClientHistory:
    """The operations of all clients, in the order of their calls. `now` is one clock for all of them, never going back."""

    now: Callable[[], float]
    _asked: list[Asked] = field(default_factory=list)

    def call(self, client: int | str, asked: VaultOperation) -> Asked:
        """Note that a client is about to ask for something."""
        operation = Asked(self, client, self.now(), asked)
        self._asked.append(operation)
        return operation

    def withdraw(self, asked: Asked) -> None:
        """Forget an operation that certainly had no effect."""
        assert asked.output is None, "what was answered belongs to the history"
        self._asked = [other for other in self._asked if other is not asked]

    @property
    def open_count(self) -> int:
        """How many operations have no answer: under way, or of unknown outcome for ever."""
        return sum(asked.output is None for asked in self._asked)

    def __len__(self) -> int:
        return len(self._asked)

    def operations(self) -> tuple[Operation[VaultOperation, VaultAnswer], ...]:
        """Return everything so far as the checker takes it."""
        return tuple(
            Operation(asked.client, asked.call, asked.ret, asked.input, asked.output) for asked in self._asked
        )


async def read_vault(core: Core, vid: Vid, *, timeout_ms: int) -> VaultState:
    """Return a vault's state as this voter's own rows have it once they are not older than this call (ReadIndex).

    Raises:
        Unavailable: the node takes no part at present, or the newest height was not confirmed and final in time.
    """
    await core.read_index(timeout_ms=timeout_ms)
    return VaultState.of(core.store.vault(vid))
