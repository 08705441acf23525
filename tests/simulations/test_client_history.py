import itertools
import math
from dataclasses import dataclass, field

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import codec, ledger_rows
from protocol.errors import Unavailable
from protocol.identifiers import Digest, PublicKey, Txid, Vid
from protocol.ledger_rows import ACCEPTED, Vault
from protocol.transaction import EpochRotate, Revoke
from simulations import determinism
from simulations.client_history import (
    NO_VAULT,
    ClientHistory,
    GrantAccess,
    OpenVault,
    ReadVault,
    RevokeGrant,
    RotateEpoch,
    VaultAnswer,
    VaultModel,
    VaultOperation,
    VaultState,
    read_vault,
)
from simulations.linearizability import check
from simulations.world import World
from tests.protocol.ledgers import Ledger, configuration, grant_to, named, vault_open

VID = Vid(named("vault"))
KEY = named("vault/cat0")
GENESIS = configuration("hospital", "clinic")


@dataclass
class Clients:
    """Clients of a real ledger's state, one after the other."""

    ledger: Ledger = field(default_factory=lambda: Ledger(GENESIS))
    gids: list[Txid] = field(default_factory=list)

    def do(self, what: str, number: int) -> tuple[VaultOperation, VaultAnswer]:
        """Do something to the vault through `ledger_state.apply`; return it with the answer."""
        ledger = self.ledger
        match what:
            case "open":
                opened = ledger.verdict(vault_open(ledger), "vault/auth", "hospital")
                return OpenVault(VID, KEY), opened
            case "grant":
                grant = grant_to(ledger, "clinic", epoch=number)
                self.gids.append(ledger.txid(grant))
                return GrantAccess(VID, self.gids[-1], number), ledger.verdict(grant, "vault/auth")
            case "revoke":
                gid = self.gids[number % len(self.gids)] if self.gids else Txid(named("no grant"))
                return RevokeGrant(VID, gid), ledger.verdict(Revoke(VID, gid, ledger.soon), "vault/auth")
            case "rotate":
                key, digest = PublicKey(named(f"cat{number}")), Digest(named("digest"))
                rotate = EpochRotate(VID, number, key, digest, digest, ledger.soon)
                return RotateEpoch(VID, number, key), ledger.verdict(rotate, "vault/auth")
            case _:
                row = ledger.rows.get(ledger_rows.vault_key(VID))
                return ReadVault(VID), VaultState.of(codec.decode(row, Vault) if row else None)


steps = st.lists(
    st.tuples(st.sampled_from(["open", "grant", "revoke", "rotate", "read"]), st.integers(0, 3)), max_size=20
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_the_model_answers_as_the_ledger_does(done: list[tuple[str, int]]) -> None:
    clients, model, state = Clients(), VaultModel(), NO_VAULT
    for what, number in done:
        asked, answer = clients.do(what, number)
        after = model.step(state, asked, answer)
        assert after is not None, f"{asked} was answered {answer} in {state}"
        state = after
    assert state == clients.do("read", 0)[1]


@settings(max_examples=60, deadline=None)
@given(steps)
def test_the_model_allows_no_other_answer(done: list[tuple[str, int]]) -> None:
    clients, model, state = Clients(), VaultModel(), NO_VAULT
    for what, number in done:
        asked, answer = clients.do(what, number)
        match answer:
            case VaultState():
                others: tuple[VaultAnswer, ...] = (VaultState(answer.epoch + 1, answer.key, answer.grants),)
            case _:
                others = ("refused: some reason",) if answer == ACCEPTED else (ACCEPTED,)
        assert all(model.step(state, asked, other) is None for other in others)
        state = model.step(state, asked, answer) or state


def test_a_refusal_by_time_is_possible_always_and_changes_nothing() -> None:
    state = VaultState(0, KEY, frozenset({b"g"}))
    for asked in (OpenVault(VID, KEY), GrantAccess(VID, b"h", 0), RevokeGrant(VID, b"g")):
        assert VaultModel().step(state, asked, "refused: expired") == state


def test_an_unknown_change_takes_effect_only_where_it_may() -> None:
    model = VaultModel()
    assert model.step(NO_VAULT, GrantAccess(VID, b"g", 0), None) is None
    assert model.step(NO_VAULT, GrantAccess(VID, b"g", -1), None) is None
    assert model.step(VaultState(0), GrantAccess(VID, b"g", 0), None) == VaultState(0, b"", frozenset({b"g"}))


def clocked() -> ClientHistory:
    return ClientHistory(itertools.count().__next__)


def opened(history: ClientHistory) -> None:
    history.call(0, OpenVault(VID, KEY)).returned(ACCEPTED)


def test_what_was_answered_in_order_is_ok_and_a_lost_grant_is_not() -> None:
    history = clocked()
    opened(history)
    history.call(1, GrantAccess(VID, b"g", 0)).returned(ACCEPTED)
    assert check(history.operations(), VaultModel()).outcome == "ok"
    history.call(2, ReadVault(VID)).returned(VaultState(0, KEY))
    (part,) = check(history.operations(), VaultModel()).violations
    assert part.part == VID
    assert "this cannot follow: [client 2 from 4 to 5: read -> epoch 0 with grants {}]" in str(
        part.explanation
    )


def test_what_was_never_answered_is_open_for_ever_and_what_was_withdrawn_never_was() -> None:
    history = clocked()
    opened(history)
    history.call(1, GrantAccess(VID, b"g", 0))
    refused = history.call(2, ReadVault(VID))
    assert (len(history), history.open_count) == (3, 2)
    refused.withdraw()
    assert (len(history), history.open_count) == (2, 1)
    assert [operation.ret for operation in history.operations()] == [1, math.inf]
    for grants in (frozenset[bytes](), frozenset({b"g"})):
        history.call(3, ReadVault(VID)).returned(VaultState(0, KEY, grants))
        assert check(history.operations(), VaultModel()).outcome == "ok"
    history.call(3, ReadVault(VID)).returned(VaultState(0, KEY))
    assert check(history.operations(), VaultModel()).outcome == "violation"


def test_a_revoked_grant_that_comes_back_is_a_violation_however_it_was_revoked() -> None:
    for revoke_is_answered in (True, False):
        history = clocked()
        opened(history)
        history.call(1, GrantAccess(VID, b"g", 0)).returned(ACCEPTED)
        revoke = history.call(2, RevokeGrant(VID, b"g"))
        if revoke_is_answered:
            revoke.returned(ACCEPTED)
        history.call(3, ReadVault(VID)).returned(VaultState(0, KEY))
        assert check(history.operations(), VaultModel()).outcome == "ok"
        history.call(3, ReadVault(VID)).returned(VaultState(0, KEY, frozenset({b"g"})))
        assert check(history.operations(), VaultModel()).outcome == "violation"


def test_a_long_list_of_grants_is_shown_in_short() -> None:
    state = VaultState(2, KEY, frozenset(bytes([k]) * 32 for k in range(20)))
    assert str(state).endswith("07070707} and 12 more")
    assert str(NO_VAULT) == "no vault"


def test_a_read_waits_until_the_voter_has_applied_what_was_final_and_one_without_a_quorum_ends() -> None:
    async def main() -> tuple[VaultState, str]:
        world = World(1, voters=3, observers=1)
        found: list[VaultState] = []
        ended: list[str] = []

        async def story() -> None:
            await trio.sleep(5)
            voter, observer = world.nodes[0], world.nodes[3]
            assert voter.life is not None
            assert observer.life is not None
            found.append(await voter.life.ask(lambda core: read_vault(core, VID, timeout_ms=2_000)))
            with pytest.raises(Unavailable, match="follows by gossip"):
                await observer.life.ask(lambda core: read_vault(core, VID, timeout_ms=2_000))
            for node in world.nodes[1:3]:
                await world.crash(node)
            try:
                await voter.life.ask(lambda core: read_vault(core, VID, timeout_ms=400))
            except Unavailable as error:
                ended.append(str(error))

        await world.run(story)
        assert world.violations == []
        return found[0], ended[0]

    with determinism.fake_signatures():
        state, ended = determinism.run(1, main)
    assert state == NO_VAULT
    assert "not final yet" in ended
