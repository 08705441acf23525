"""Following another network by its headers: what brings an anchor further, and everything that must not (ledger.md 8)."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from node.bench.made_history import BEGIN_MS, MadeHistory, signing_key, transactions
from protocol import codec, limits
from protocol.block import Block
from protocol.change_proof import check_not_given_up, height_of
from protocol.checkpoint import (
    Checkpoint,
    KeyKind,
    NoteKey,
    SignedCheckpoint,
    cosign_checkpoint,
    origin_of,
    sign_checkpoint,
)
from protocol.errors import Conflicting, Invalid, Refused, RemoteFault
from protocol.identifiers import Digest
from protocol.light_client import Anchor, Freshness, Update, advance, anchor_at
from protocol.merkle import consistency_proof, root_of_leaves
from protocol.trust_policy import CERTIFICATE_ALONE, TrustPolicy, parse_policy

NAMES = ("one", "two", "three", "four")


def grow(chain: MadeHistory, blocks: int, each: int = 3, *, first: int = 0) -> None:
    """Add blocks of transactions that follow those before, or those from number `first` on."""
    known = first + sum(len(block.transactions) for block in chain.blocks)
    body = transactions(known + blocks * each, chain.network)[known:]
    for n in range(blocks):
        chain.cut(*body[n * each : (n + 1) * each])


def leaves(chain: MadeHistory) -> list[Digest]:
    return [leaf for block in chain.blocks for leaf in block.leaves()]


def update(chain: MadeHistory, anchor: Anchor, top: Block | None = None, checkpoint: bytes = b"") -> Update:
    """Return what a member of the network answers to somebody who stands at `anchor`."""
    block = top or chain.blocks[-1]
    hashes = leaves(chain)
    proof = consistency_proof(
        anchor.header.tree_size,
        block.header.tree_size,
        lambda level, at: root_of_leaves(hashes[at << level : (at + 1) << level]),
    )
    changes = tuple(one for one in chain.changes if anchor.height < height_of(one) < block.height)
    return Update(changes, chain.certificate(block), proof, checkpoint)


@pytest.fixture(scope="module")
def chain() -> MadeHistory:
    """A network with transactions before, between and after four changes of its signers."""
    grown = MadeHistory.of(*NAMES)
    grow(grown, 2)
    grown.rotate(2)
    grow(grown, 3)
    grown.rotate(4)
    grow(grown, 3)
    return grown


def half(chain: MadeHistory) -> Anchor:
    """Return an anchor that has come as far as the block after the second change; that chain is cut off there."""
    start = anchor_at(chain.genesis, BEGIN_MS)
    shorter = MadeHistory.of(*NAMES)
    grow(shorter, 2)
    shorter.rotate(2)
    grow(shorter, 2)
    assert shorter.blocks == chain.blocks[: len(shorter.blocks)]
    return advance(start, update(shorter, start), CERTIFICATE_ALONE, BEGIN_MS)


def test_an_anchor_at_genesis_follows_every_change_at_once(chain):
    start = anchor_at(chain.genesis, BEGIN_MS)

    anchor = advance(start, update(chain, start), CERTIFICATE_ALONE, BEGIN_MS)

    assert (anchor.height, anchor.configuration) == (chain.blocks[-1].height, chain.configuration)
    assert anchor.header.tree_size == len(leaves(chain)) - 3


def test_step_by_step_an_anchor_comes_to_the_same(chain):
    middle = half(chain)
    assert middle.height == 6
    assert middle.configured_at == 4

    anchor = advance(middle, update(chain, middle), CERTIFICATE_ALONE, BEGIN_MS)

    start = anchor_at(chain.genesis, BEGIN_MS)
    assert anchor == advance(start, update(chain, start), CERTIFICATE_ALONE, BEGIN_MS)


def test_an_anchor_survives_its_wire_form(chain):
    anchor = half(chain)

    assert codec.decode(codec.encode(anchor), Anchor) == anchor
    assert codec.decode(codec.encode(update(chain, anchor)), Update) == update(chain, anchor)


def test_an_anchor_ages_and_expires(chain):
    anchor = half(chain)
    day = limits.DAY_MS

    assert anchor.freshness(anchor.confirmed_ms + 14 * day) is Freshness.FRESH
    assert anchor.freshness(anchor.confirmed_ms + 16 * day) is Freshness.AGEING
    assert anchor.freshness(anchor.confirmed_ms + 31 * day) is Freshness.EXPIRED
    with pytest.raises(Refused, match="last confirmed 31 days ago"):
        advance(anchor, update(chain, anchor), CERTIFICATE_ALONE, anchor.confirmed_ms + 31 * day)


def test_a_header_from_the_future_does_not_keep_an_anchor_fresh_for_longer(chain):
    start = anchor_at(chain.genesis, BEGIN_MS - limits.DAY_MS)

    anchor = advance(start, update(chain, start), CERTIFICATE_ALONE, BEGIN_MS - limits.DAY_MS)

    assert anchor.confirmed_ms == BEGIN_MS - limits.DAY_MS


def test_an_old_header_does_not_make_an_anchor_fresh(chain):
    middle = half(chain)
    later = middle.confirmed_ms + 20 * limits.DAY_MS

    again = advance(middle, update(chain, middle, chain.blocks[6]), CERTIFICATE_ALONE, later)

    assert again.freshness(later) is Freshness.AGEING


def forged(chain: MadeHistory, anchor: Anchor) -> MadeHistory:
    """Return another history of the same network, signed by the same keys, from genesis on."""
    other = MadeHistory.of(*NAMES)
    grow(other, 1, each=7, first=50)
    other.rotate(2)
    grow(other, 8, each=1, first=50)
    assert other.network == chain.network
    return other


BAD: dict[str, tuple[Callable[[MadeHistory, Anchor], Update], type[RemoteFault], str]] = {
    "a rollback": (
        lambda chain, anchor: replace(update(chain, anchor), certificate=chain.certificate(chain.blocks[5])),
        Invalid,
        "goes back behind block 6",
    ),
    "another block of the height seen": (
        lambda chain, anchor: replace(
            update(chain, anchor),
            certificate=forged(chain, anchor).certificate(other_at(chain, anchor)),
            changes=(),
        ),
        Conflicting,
        "two certified blocks of height 6",
    ),
    "another history from before": (
        lambda chain, anchor: replace(
            update(chain, anchor),
            changes=tuple(forged(chain, anchor).changes[:1]),
        ),
        Invalid,
        "a change at block 2 behind block 6",
    ),
    "changes left out": (
        lambda chain, anchor: replace(update(chain, anchor), changes=update(chain, anchor).changes[1:]),
        Invalid,
        "another configuration",
    ),
    "a certificate of the configuration before": (
        lambda chain, anchor: replace(update(chain, anchor), changes=()),
        Invalid,
        "another configuration|does not sign",
    ),
    "no consistency proof": (
        lambda chain, anchor: replace(update(chain, anchor), consistency=()),
        Invalid,
        "consistency proof is empty",
    ),
    "a consistency proof of other leaves": (
        lambda chain, anchor: replace(
            update(chain, anchor), consistency=update(chain, anchor).consistency[::-1]
        ),
        Invalid,
        "consistency proof",
    ),
    "another network": (
        lambda _chain, anchor: abroad(anchor),
        Invalid,
        "another network",
    ),
}


def other_at(chain: MadeHistory, anchor: Anchor) -> Block:
    return forged(chain, anchor).blocks[anchor.height]


def abroad(anchor: Anchor) -> Update:
    other = MadeHistory.of(*NAMES, nonce="abroad")
    grow(other, 10)
    return Update((), other.certificate(other.blocks[-1]), (), b"")


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_continue_what_was_seen_is_refused(name, chain):
    spoil, error, sentence = BAD[name]
    anchor = half(chain)

    with pytest.raises(error, match=sentence):
        advance(anchor, spoil(chain, anchor), CERTIFICATE_ALONE, BEGIN_MS)


def test_another_past_is_refused_by_who_has_seen_further(chain):
    """The long-range attack at its worst: a whole quorum signs, and other transactions stand where some were seen."""
    anchor = half(chain)
    other = forged(chain, anchor)
    taken = update(other, anchor)

    with pytest.raises(Invalid, match="consistency proof"):
        advance(anchor, replace(taken, changes=()), CERTIFICATE_ALONE, BEGIN_MS)


def test_an_anchor_follows_into_the_next_epoch_and_denounces_what_gives_up_a_block_it_has_seen(chain):
    start = anchor_at(chain.genesis, BEGIN_MS)
    kept, dropped = MadeHistory.of(*NAMES), MadeHistory.of(*NAMES)
    for history in (kept, dropped):
        grow(history, 3)
    grow(kept, 1)
    seen = advance(start, update(kept, start), CERTIFICATE_ALONE, BEGIN_MS)
    for history in (kept, dropped):
        history.recover("four")
        grow(history, 3)

    anchor = advance(seen, update(kept, seen), CERTIFICATE_ALONE, BEGIN_MS)
    assert (anchor.header.epoch, anchor.configured_at) == (1, 5)

    with pytest.raises(Conflicting, match="the recovery into epoch 1 gives up block 4"):
        advance(
            seen, replace(update(kept, seen), changes=tuple(dropped.changes)), CERTIFICATE_ALONE, BEGIN_MS
        )


def branches() -> tuple[MadeHistory, MadeHistory]:
    """Return a history that goes on in a second epoch without one member, and one in which the four go on in the first."""
    recovered, left_behind = MadeHistory.of(*NAMES), MadeHistory.of(*NAMES)
    for history in (recovered, left_behind):
        grow(history, 3)
    recovered.recover("four")
    grow(recovered, 2)
    grow(left_behind, 9, first=6)
    return recovered, left_behind


def test_who_knows_of_the_new_epoch_follows_no_quorum_of_the_old_one_that_came_back():
    recovered, left_behind = branches()
    start = anchor_at(recovered.genesis, BEGIN_MS)
    anchor = advance(start, update(recovered, start), CERTIFICATE_ALONE, BEGIN_MS)

    assert left_behind.blocks[-1].height > anchor.height
    with pytest.raises(Invalid, match="goes back behind"):
        advance(anchor, update(left_behind, anchor), CERTIFICATE_ALONE, BEGIN_MS)


def test_a_receipt_of_the_branch_that_was_given_up_holds_only_for_who_knows_of_no_recovery():
    recovered, left_behind = branches()
    for height, is_given_up in ((3, False), (4, True), (12, True)):
        proof = left_behind.proof(height, left_behind.certificate(left_behind.blocks[height]))
        assert proof.check().epoch == 0
        check_not_given_up(proof.header, left_behind.changes)
        if is_given_up:
            with pytest.raises(Invalid, match="recovery into epoch 1 goes on from block 3"):
                check_not_given_up(proof.header, recovered.changes)
        else:
            check_not_given_up(proof.header, recovered.changes)
    check_not_given_up(recovered.blocks[-1].header, recovered.changes)


# --- policy -----------------------------------------------------------------------------------------------------


def policy_of(chain: MadeHistory) -> TrustPolicy:
    """Return: two signers by their node keys, one by its checkpoint key, and one of two outside witnesses."""
    origin = origin_of(chain.network)
    signers = [
        NoteKey(origin, KeyKind.LOG, signing_key(name).public).text for name in ("newcomer 0", "newcomer 1")
    ]
    noted = NoteKey(origin, KeyKind.LOG, signing_key("notary").public).text
    outside = [
        NoteKey(f"{name}.example", KeyKind.COSIGNER, signing_key(name).public).text for name in ("w1", "w2")
    ]
    text = f"""witness a {signers[0]}
witness b {signers[1]}
witness c {noted}
group theirs 1 a b c
witness w1 {outside[0]}
witness w2 {outside[1]}
group ours any w1 w2
group both all theirs ours
quorum both
"""
    return parse_policy(text.encode(), source="policy")


def note(chain: MadeHistory, *cosigners: str, size: int | None = None, signed: str = "notary") -> bytes:
    header = chain.blocks[-1].header
    head = Checkpoint(origin_of(chain.network), header.tree_size if size is None else size, header.tree_root)
    lines = [sign_checkpoint(signing_key(signed), head)]
    lines += [
        cosign_checkpoint(signing_key(name), f"{name}.example", head, 1_700_000_000) for name in cosigners
    ]
    return SignedCheckpoint(head, tuple(lines)).encode()


def test_a_policy_hears_votes_and_cosignatures(chain):
    start = anchor_at(chain.genesis, BEGIN_MS)

    anchor = advance(start, update(chain, start, checkpoint=note(chain, "w2")), policy_of(chain), BEGIN_MS)

    assert anchor.height == chain.blocks[-1].height


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda _chain: b"", "too few of those whose word counts"),
        (note, "too few of those whose word counts"),
        (lambda chain: note(chain, "w3"), "too few of those whose word counts"),
        (lambda chain: note(chain, "w1", size=1), "of another tree"),
        (lambda chain: note(chain, "w1").replace(b"w1", b"w2"), "does not verify|too few"),
        (lambda _chain: b"no note", "a note is"),
    ],
)
def test_too_little_for_the_policy_is_refused(build, sentence, chain):
    start = anchor_at(chain.genesis, BEGIN_MS)

    with pytest.raises(RemoteFault, match=sentence):
        advance(start, update(chain, start, checkpoint=build(chain)), policy_of(chain), BEGIN_MS)


def test_a_member_that_calls_a_witness_key_its_own_does_not_speak_for_the_witness():
    """A configuration may say anything about checkpoint keys; only signatures are heard."""
    chain = MadeHistory.of("one")
    members = [replace(one, checkpoint=signing_key("w1").public) for one in chain.configuration.members]
    chain.change(replace(chain.configuration, members=tuple(members), number=1))
    chain.cut()
    start = anchor_at(chain.genesis, BEGIN_MS)
    witness = NoteKey("w1.example", KeyKind.COSIGNER, signing_key("w1").public).text
    policy = parse_policy(f"witness w1 {witness}\nquorum w1\n".encode(), source="policy")

    with pytest.raises(Invalid, match="too few"):
        advance(start, update(chain, start), policy, BEGIN_MS)
