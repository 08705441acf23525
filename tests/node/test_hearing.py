"""From the task that owns Raft to the desk of evidence: what is routine waits, what is not has it read."""

from random import Random

import pytest

from node.hearing import Hearing
from protocol import evidence
from protocol.identifiers import NodeId, Term
from protocol.notebook import Notebook
from protocol.overheard import holds
from protocol.raft.messages import Input, VoteReply
from protocol.raft.state import Contradiction
from simulations import determinism, liar_world
from simulations.core_network import Frame
from simulations.liar import Lie
from simulations.liar_world import LyingCluster
from tests.protocol.chain import NODES
from tests.protocol.evidence_cast import LEFT, RIGHT, TRUNK, certify, grant, signed_header, vote

VIRTUAL_S = 12.0


class ListeningCluster(LyingCluster):
    """Gives every honest member an ear and a notebook of its own; nobody gossips."""

    def __init__(self, seed: int, lie: Lie) -> None:
        super().__init__(seed, lie, voters=4)
        self.ears = [Hearing() for _ in self.nodes]
        self.notebooks = [Notebook(self.network_id, lambda: self._known) for _ in self.nodes]
        self.found = set[tuple[str, NodeId]]()
        self.messages = self.read = 0

    def _deliver(self, source: int, target: int, load: object) -> None:
        super()._deliver(source, target, load)
        if target and isinstance(load, Frame):
            self.hear(self.nodes[source].id, target, load.input())

    def hear(self, source: NodeId, target: int, message: Input) -> None:
        ear = self.ears[target]
        ear.hear(source, message)
        self.messages += 1
        while ear.heard.statistics().current_buffer_used:
            heard = ear.heard.receive_nowait()
            for statement in heard.said:
                self.read += 1
                if holds(statement, self.network_id, self._known):
                    for found in self.notebooks[target].see(statement, heard.headers):
                        conviction = evidence.check(found, self.network_id, self._known)
                        self.found |= {(conviction.kind, node) for node in conviction.nodes}


def listened(seed: int, lie: Lie) -> ListeningCluster:
    with determinism.fake_signatures():
        cluster = ListeningCluster(seed, lie)
        liar_world.tell(cluster, VIRTUAL_S)
    return cluster


@pytest.mark.parametrize(("lie", "kind", "seed"), [(Lie.DOUBLE_VOTE, "E4", 1), (Lie.EQUIVOCATE, "E1", 4)])
def test_members_convict_a_liar_by_what_each_of_them_hears(lie: Lie, kind: str, seed: int) -> None:
    cluster = listened(seed, lie)

    assert {node for _, node in cluster.found} == {cluster.liar.me}
    assert kind in {found for found, _ in cluster.found}


def test_where_nobody_contradicts_anybody_little_is_read() -> None:
    cluster = listened(3, Lie.WITHHOLD)

    assert cluster.found == set()
    assert cluster.read < cluster.messages, "each election has what was put aside before it read"


def test_what_was_put_aside_comes_before_what_contradicts_it() -> None:
    hearing = Hearing()
    certificate = certify(vote(TRUNK[1]), vote(TRUNK[1], by=1), block=TRUNK[1])
    hearing.follow(TRUNK)
    hearing.final(certificate)
    assert hearing.heard.statistics().current_buffer_used == 0

    hearing.contradiction(Contradiction("E1", LEFT[0], RIGHT[0]))

    heard = hearing.heard.receive_nowait()
    assert heard.said[0] == certificate
    assert heard.said[-2:] == (signed_header(LEFT[0]), signed_header(RIGHT[0]))
    assert {one.header for one in (*TRUNK, LEFT[0], RIGHT[0])} <= set(heard.headers)


def test_the_log_that_turns_to_another_chain_has_the_first_word_about_it() -> None:
    hearing = Hearing()
    hearing.follow((*TRUNK, *LEFT))
    hearing.follow(RIGHT)

    assert hearing.heard.receive_nowait().said[-1] == signed_header(RIGHT[0])
    assert hearing.heard.statistics().current_buffer_used == 0, "the rest follows upon it"


def test_a_flood_is_bounded_and_costs_nothing_that_was_put_aside() -> None:
    hearing, rng = Hearing(), Random(1)
    for term in range(100):
        hearing.hear(NODES[1], VoteReply(Term(term), NODES[1], grant(term, rng.randrange(3), by=1)))
    hearing.follow(TRUNK)
    hearing.final(certify(vote(TRUNK[1]), block=TRUNK[1]))
    hearing.refused(TRUNK)

    assert hearing.dropped > 0
    assert [type(statement) for statement in hearing.aside().said] == [type(certify(block=TRUNK[1]))]


def test_refused_blocks_are_passed_on_as_they_came() -> None:
    hearing = Hearing()
    hearing.refused(LEFT)
    hearing.refused(())

    assert hearing.heard.receive_nowait().refused == LEFT
    assert hearing.heard.statistics().current_buffer_used == 0
