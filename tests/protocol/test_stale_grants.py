"""What remaking a grant rests on: an epoch only counts up, so a Grant of an earlier epoch can never be accepted."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from protocol import codec, ledger_rows
from protocol.identifiers import ZERO, Digest, NodeId, PublicKey, Vid
from protocol.ledger_rows import ACCEPTED, Vault
from protocol.transaction import CustodyTransfer, EpochRotate, Revoke
from tests.protocol.ledgers import Ledger, configuration, grant_to, key, named, vault_open

VID = Vid(named("vault"))
GENESIS = configuration("hospital", "clinic", "lab")


def vault_of(ledger: Ledger) -> Vault:
    return codec.decode(ledger.rows[ledger_rows.vault_key(VID)], Vault)


def rotate(ledger: Ledger, epoch: int) -> EpochRotate:
    return EpochRotate(
        VID, epoch, PublicKey(named(f"cat{epoch}")), Digest(named("l")), Digest(named("w")), ledger.soon
    )


def transfer(ledger: Ledger, name: str) -> CustodyTransfer:
    return CustodyTransfer(
        VID, NodeId(ZERO), key(name).public, key(name + "/rec").public, PublicKey(named(name)), ledger.soon
    )


@given(st.lists(st.tuples(st.sampled_from(["rotate", "grant", "revoke", "open", "transfer"]), st.integers(0, 3)), max_size=12))  # fmt: skip
def test_an_epoch_only_counts_up_and_what_is_stale_stays_refused(steps: list[tuple[str, int]]) -> None:
    ledger = Ledger(GENESIS)
    assert ledger.verdict(vault_open(ledger), "vault/auth", "hospital") == ACCEPTED
    queued = ledger.sign(grant_to(ledger, "lab"), "vault/auth")
    holder, epoch, gids = "vault/auth", 0, [ledger.txid(queued.transaction)]

    for what, number in steps:
        match what:
            case "rotate":
                ledger.verdict(rotate(ledger, number), holder)
            case "grant":
                grant = replace(grant_to(ledger, "clinic"), epoch=number)
                ledger.verdict(grant, holder)
                gids.append(ledger.txid(grant))
            case "revoke":
                ledger.verdict(Revoke(VID, gids[number % len(gids)], ledger.soon), holder)
            case "open":
                ledger.verdict(vault_open(ledger), "vault/auth", "hospital")
            case _:
                name = f"holder{number}"
                if ledger.verdict(transfer(ledger, name), holder, name) == ACCEPTED:
                    holder = name
        assert vault_of(ledger).epoch >= epoch
        epoch = vault_of(ledger).epoch

    if epoch > 0:
        assert ledger.commit(queued)[0].verdict != ACCEPTED
