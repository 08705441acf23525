"""Another network, followed by a facility: kept durably, recorded on our ledger, never taken back."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from node.bench.made_history import MadeHistory, signing_key
from node.card_file import genesis_text
from node.foreign import ForeignNetworks
from node.update_proofs import UpdateProofs
from protocol import codec, limits
from protocol.block import header_hash
from protocol.change_proof import height_of
from protocol.checkpoint import (
    Checkpoint,
    KeyKind,
    NoteKey,
    SignedCheckpoint,
    cosign_checkpoint,
    origin_of,
)
from protocol.cross_anchoring import ForeignHeads, foreign_key
from protocol.errors import NotFinal, Refused, Unavailable
from protocol.identifiers import Height
from protocol.light_client import Anchor, Update, advance, anchor_at
from protocol.signing import SigningKey
from protocol.trust_policy import CERTIFICATE_ALONE
from storage.key_value import Batch
from storage.ledger_store import AppliedMark, LedgerStore
from storage.memory import MemoryStore
from tests.node.ledger_double import InlineDisk, InlineWorkers, LedgerDouble, running
from tests.protocol.test_light_client import grow, update


def theirs() -> MadeHistory:
    history = MadeHistory.of("one", "two", "three", "four")
    grow(history, 2)
    history.rotate(2)
    grow(history, 3)
    return history


def an_update(history: MadeHistory, height: int, since: int = 0) -> bytes:
    start = anchor_at(history.genesis, 0)
    known = history.blocks[since].header
    return codec.encode(update(history, replace(start, header=known), history.blocks[height]))


class House:
    """Our facility, with its ledger."""

    def __init__(self, ledger: LedgerDouble) -> None:
        self.ledger, self.me = ledger, ledger.members[0]
        self.networks = self.opened()

    def opened(self) -> ForeignNetworks:
        """Return the service as after a restart."""
        me = self.me
        return ForeignNetworks(
            key=SigningKey(me.identity.node),
            store=me.store,
            rows=me.rows,
            disk=InlineDisk(me.rows),
            workers=InlineWorkers(),
            clock=self.ledger.clock,
            submitter=me.submitter,
        )

    def recorded(self) -> list[int]:
        """Return the heights of other networks that our ledger holds by our word."""
        row = self.me.store.state(foreign_key(self.me.identity.node_id))
        return [] if row is None else [one.height for one in codec.decode(row, ForeignHeads).heads]


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    async with running(LedgerDouble(1)) as ledger:
        yield House(ledger)


async def test_a_network_is_followed_and_recorded_on_our_ledger():
    history = theirs()
    async with house() as ours:
        added = await ours.networks.add(genesis_text(history.genesis), "")
        assert (added["height"], added["freshness"], added["usable"]) == (0, "fresh", True)

        first = await ours.networks.update(an_update(history, 2))
        second = await ours.networks.update(an_update(history, 7, since=2))

        assert (first["height"], second["height"]) == (2, 7)
        assert second["header_hash"] == header_hash(history.blocks[7].header).hex()
        assert ours.recorded() == [7]
        assert ours.me.store.receipt(bytes.fromhex(second["transaction"])).is_accepted  # type: ignore[arg-type,union-attr]


async def test_what_was_seen_is_still_known_after_a_restart():
    history = theirs()
    async with house() as ours:
        await ours.networks.add(genesis_text(history.genesis), "")
        await ours.networks.update(an_update(history, 7))
        after = ours.opened()

        (known,) = after.networks()["networks"]
        assert known["height"] == 7
        with pytest.raises(Refused, match="goes back behind block 7"):
            await after.update(an_update(history, 5))
        # Added once more, it does not begin anew either.
        assert (await after.add(genesis_text(history.genesis), ""))["height"] == 7


async def test_the_same_update_again_changes_nothing():
    history = theirs()
    async with house() as ours:
        await ours.networks.add(genesis_text(history.genesis), "")
        await ours.networks.update(an_update(history, 7))
        height = ours.me.store.applied().height

        again = await ours.networks.update(an_update(history, 7, since=7))

        assert again["height"] == 7
        assert ours.me.store.applied().height == height


async def test_a_second_history_is_kept_as_proof_and_shown():
    history, other = theirs(), MadeHistory.of("one", "two", "three", "four")
    grow(other, 7, first=50)
    async with house() as ours:
        await ours.networks.add(genesis_text(history.genesis), "")
        await ours.networks.update(an_update(history, 2))

        with pytest.raises(Refused, match="a second history"):
            await ours.networks.update(an_update(other, 2, since=2))

        (known,) = ours.opened().networks()["networks"]
        assert (known["height"], known["conflict"], known["usable"]) == (2, True, False)
        assert known["header_hash"] == header_hash(history.blocks[2].header).hex()


async def test_too_long_unconfirmed_it_waits_for_people():
    history = theirs()
    async with house() as ours:
        added = await ours.networks.add(genesis_text(history.genesis), "")
        ours.ledger.clock.advance_ms(31 * limits.DAY_MS)
        assert ours.networks.networks()["networks"][0]["usable"] is False
        with pytest.raises(Refused, match="last confirmed 31 days ago"):
            await ours.networks.update(an_update(history, 7))

        with pytest.raises(Refused, match="one of you sees another history"):
            await ours.networks.confirm(added["network"][:8], "00" * 32)
        confirmed = await ours.networks.confirm(added["network"][:8], added["header_hash"].upper())

        assert confirmed["freshness"] == "fresh"
        assert (await ours.networks.update(an_update(history, 7)))["height"] == 7


async def test_without_a_quorum_the_anchor_is_kept_and_the_record_is_queued(autojump_clock):
    history = theirs()
    async with house() as ours:
        await ours.networks.add(genesis_text(history.genesis), "")
        ours.ledger.has_quorum = False

        with pytest.raises(NotFinal) as queued:
            await ours.networks.update(an_update(history, 7))

        assert queued.value.details["height"] == 7
        assert len(queued.value.ids) == 1
        assert ours.networks.networks()["networks"][0]["height"] == 7


async def test_a_policy_is_asked():
    history = theirs()
    witness = NoteKey("w1.example", KeyKind.COSIGNER, signing_key("w1").public).text
    async with house() as ours:
        await ours.networks.add(genesis_text(history.genesis), f"witness w1 {witness}\nquorum w1\n")

        with pytest.raises(Refused, match="too few of those whose word counts"):
            await ours.networks.update(an_update(history, 7))
        await ours.networks.add(genesis_text(history.genesis), "quorum none\n")
        assert (await ours.networks.update(an_update(history, 7)))["height"] == 7


Refusal = Callable[[House], object]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda ours: ours.networks.add("{}", ""), "not a genesis"),
        (lambda ours: ours.networks.add(genesis_text(theirs().genesis), "trust"), "line 1"),
        (lambda ours: ours.networks.add(genesis_text(ours.ledger.genesis), ""), "our own network"),
        (lambda ours: ours.networks.update(b"no update"), "this is no update"),
        (lambda ours: ours.networks.update(an_update(theirs(), 7)), "is not followed"),
        (lambda ours: ours.networks.confirm("", "00" * 32), "no network"),
        (lambda ours: ours.networks.confirm("ab", "00" * 32), "no network"),
    ],
)
async def test_bad_input_is_refused_in_one_sentence(call, sentence):
    async with house() as ours:
        with pytest.raises(Refused, match=sentence):
            await call(ours)
        assert ours.networks.networks() == {"networks": []}


async def test_there_is_a_most_of_networks():
    async with house() as ours:
        for n in range(limits.FOREIGN_NETWORKS_MAX):
            await ours.networks.add(genesis_text(MadeHistory.of("one", nonce=str(n)).genesis), "")

        with pytest.raises(Refused, match="which is the most"):
            await ours.networks.add(genesis_text(theirs().genesis), "")


# --- the other side ---------------------------------------------------------------------------------------------


def proofs_of(history: MadeHistory, *, applied: int, note: SignedCheckpoint | None = None) -> UpdateProofs:
    """Return the proofs of a member of the other network that has applied so much of it."""
    rows = MemoryStore()
    store = LedgerStore(rows, history.genesis)
    block = history.blocks[applied]
    batch = Batch()
    store.put_blocks(batch, history.blocks)
    mark = AppliedMark(block.height, block.hash, block.header.time_ms, 0, ())
    batch.put(b"A", codec.encode(mark))
    rows.write(batch, sync=True)
    certified = {one.certificate.height: one.certificate for one in history.certified_changes}
    certified |= {
        one.height: history.certificate(one) for one in history.blocks[1:] if not one.is_configuration
    }
    known = anchor_at(history.genesis, 0)
    return UpdateProofs(
        store,
        certificate_at_or_below=certified.get,
        changes=lambda above, below: tuple(one for one in history.changes if above < height_of(one) < below),
        consistency_proof=lambda old, head: (
            update(
                history,
                replace(known, header=replace(known.header, tree_size=old)),
                at_size(history, head.size),
            ).consistency
        ),
        notes=lambda: (None, note),
    )


def at_size(history: MadeHistory, size: int):
    return next(block for block in history.blocks if block.header.tree_size == size)


def test_an_update_made_from_a_ledger_brings_an_anchor_to_its_newest_header():
    history = theirs()
    anchor: Anchor = anchor_at(history.genesis, 0)

    height, data = proofs_of(history, applied=7).make(0)

    assert height == 7
    assert advance(anchor, codec.decode(data, Update), CERTIFICATE_ALONE, 0).height == Height(7)


def test_an_update_brings_the_cosigned_checkpoint_of_a_header_that_is_a_little_older():
    history = theirs()
    header = history.blocks[6].header
    head = Checkpoint(origin_of(history.network), header.tree_size, header.tree_root)
    note = SignedCheckpoint(head, (cosign_checkpoint(signing_key("w1"), "w1.example", head, 1),))

    height, data = proofs_of(history, applied=7, note=note).make(0)

    assert height == 6
    assert codec.decode(data, Update).checkpoint == note.encode()


def test_a_configuration_block_at_the_tip_comes_with_the_block_above_it():
    history = theirs()

    height, data = proofs_of(history, applied=4).make(0)

    assert height == 2
    assert codec.decode(data, Update).changes == ()


def test_there_is_no_update_to_what_is_not_there_yet():
    with pytest.raises(Refused, match="nothing above 6 yet"):
        proofs_of(theirs(), applied=5).make(6)
    with pytest.raises(Unavailable, match="no block with a certificate"):
        proofs_of(theirs(), applied=0).make(0)
