"""Evidence on the ledger: written once, by whoever reports it, alike on every node, whatever the bytes."""

import dataclasses

import pytest

from protocol import codec, convictions, evidence, ledger_state, limits, transaction
from protocol.block import Block, cut
from protocol.configuration import Configuration
from protocol.convictions import Convicted, convicted_key, rows_of
from protocol.errors import Invalid, RemoteFault
from protocol.evidence import Evidence
from protocol.evidence_certificates import ConflictingCertificates, FalseBase
from protocol.evidence_statements import TwoGrants, TwoHeaders
from protocol.identifiers import ZERO, NodeId
from protocol.ledger_rows import ACCEPTED
from protocol.merkle import Frontier
from protocol.transaction import Accusation
from tests.protocol import evidence_cast as cast
from tests.protocol.chain import CONFIGURATION, NETWORK, NOW_MS, UNTIL_MS, VOTERS
from tests.protocol.evidence_cast import CONFIGURATIONS, GENESIS, LEFT, RIGHT, fork, grant, vote

GRANTS = TwoGrants(grant(5, 1), grant(5, 2))
LEFT_CERTIFIED = cast.certify(vote(LEFT[0], by=1), vote(LEFT[0], by=2), block=LEFT[0])
FALSE_BASE = FalseBase(vote(RIGHT[2], RIGHT[0]), LEFT_CERTIFIED, ())
RIGHT_CERTIFIED = cast.certify(vote(RIGHT[1], by=0), vote(RIGHT[1], by=2), block=RIGHT[1])
BOTH_CERTIFIED = ConflictingCertificates(
    LEFT_CERTIFIED, RIGHT_CERTIFIED, fork(LEFT[:1], RIGHT[:2]), cast.node(0)
)


class Rows:
    """A state, and blocks upon genesis."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.tip: Block = GENESIS
        self.count = 0

    def block(self, *entries: bytes, configuration: Configuration | None = None) -> ledger_state.Applied:
        in_force = CONFIGURATION
        self.tip = cut(
            entries, configuration=configuration, predecessor=self.tip.header, predecessor_hash=self.tip.hash,
            frontier=Frontier(), term=self.tip.term, key=VOTERS[0], now_ms=NOW_MS,
        )  # fmt: skip
        applied = ledger_state.apply(self.rows.get, in_force, self.tip)
        for key, value in applied.writes.items():
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value
        return applied

    def accuse(self, raw: bytes, *, by: int = 1, signed_by: int | None = None) -> str:
        self.count += 1
        body = Accusation(NodeId(VOTERS[by].public), raw, UNTIL_MS + self.count)
        key = VOTERS[by if signed_by is None else signed_by]
        entry = codec.encode(transaction.sign(body, NETWORK, key))
        return self.block(entry).outcomes[0].receipt.verdict

    def report(self, found: Evidence) -> str:
        return self.accuse(codec.encode(found))

    def convicted(self, number: int, kind: str) -> Convicted | None:
        row = self.rows.get(convicted_key(cast.node(number), kind))
        return codec.decode(row, Convicted) if row is not None else None


@pytest.fixture
def rows() -> Rows:
    return Rows()


def test_evidence_is_written_under_whom_it_convicts(rows: Rows) -> None:
    assert rows.report(GRANTS) == ACCEPTED

    found = rows.convicted(0, "E4")
    assert found is not None
    assert (found.node, found.kind, found.height) == (cast.node(0), "E4", 1)
    assert rows_of(
        (key, row) for key, row in rows.rows.items() if key.startswith(convictions.CONVICTED_PREFIX)
    ) == (found,)


def test_what_is_on_record_is_not_written_again(rows: Rows) -> None:
    rows.report(GRANTS)
    before = rows.convicted(0, "E4")

    again = rows.report(TwoGrants(grant(7, 1), grant(7, 2)))

    assert again == "refused: it is on record already"
    assert rows.convicted(0, "E4") == before


def test_evidence_that_convicts_nobody_is_refused_with_the_reason(rows: Rows) -> None:
    honest = TwoHeaders(cast.signed_header(cast.TRUNK[0]), cast.signed_header(cast.TRUNK[1]))

    assert rows.report(honest).startswith("refused: no evidence: two headers of different heights")
    assert rows.accuse(b"junk").startswith("refused: no evidence: not")


def test_only_a_member_reports_and_under_its_own_key(rows: Rows) -> None:
    assert rows.accuse(codec.encode(GRANTS), by=1, signed_by=2) == "refused: signed by the wrong keys"


def test_a_certificate_clears_the_base_that_another_certificate_made_look_false(rows: Rows) -> None:
    assert rows.report(FALSE_BASE) == ACCEPTED

    assert rows.report(BOTH_CERTIFIED) == ACCEPTED

    assert rows.convicted(0, "E3b") is None
    assert rows.convicted(2, "E3") is not None, "who signed both is convicted instead"
    assert rows.report(FALSE_BASE) == "refused: a certificate has cleared the member of this"


def test_certificates_do_not_clear_what_they_do_not_certify(rows: Rows) -> None:
    invented = dataclasses.replace(RIGHT[0].header, time_ms=1)
    base = Block(invented, bytes(64), b"", cast.BODIES[:1])
    assert rows.report(FalseBase(vote(RIGHT[2], base), LEFT_CERTIFIED, ())) == ACCEPTED

    rows.report(BOTH_CERTIFIED)

    assert rows.convicted(0, "E3b") is not None


def test_a_certificate_of_a_past_configuration_still_counts(rows: Rows) -> None:
    later = dataclasses.replace(CONFIGURATION, number=1, min_b=1)
    rows.block(configuration=later)

    known = convictions.Convicting(rows.rows.get, {}, later, rows.tip.header)._known(FALSE_BASE)

    assert set(known) == {CONFIGURATION.digest, later.digest}
    assert evidence.check(FALSE_BASE, NETWORK, known).kind == "E3b"


def test_an_accusation_may_be_longer_than_other_transactions_and_has_a_bound() -> None:
    def signed(length: int) -> bytes:
        body = Accusation(NodeId(VOTERS[0].public), bytes(length), UNTIL_MS)
        return codec.encode(transaction.sign(body, NETWORK, VOTERS[0]))

    transaction.check(signed(limits.EVIDENCE_BYTES_MAX), NETWORK)
    with pytest.raises(RemoteFault):
        transaction.check(signed(limits.EVIDENCE_BYTES_MAX + 1), NETWORK)


def test_nobody_is_named_by_the_certificates_of_nobody() -> None:
    one_chain = dataclasses.replace(BOTH_CERTIFIED, accused=NodeId(ZERO), other=LEFT_CERTIFIED)

    with pytest.raises(Invalid):
        evidence.check(one_chain, NETWORK, CONFIGURATIONS)
