"""The real core and the model of certificates agree, and they stop agreeing when a rule is taken out of the core."""

import importlib
import json
import random
import types
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from protocol import finality, limits
from protocol.configuration import Configuration
from protocol.identifiers import ZERO, Digest, Height, NodeId
from protocol.raft.certifying import Certifying
from protocol.raft.election import Election
from protocol.raft.messages import AppendEntries, Message
from simulations import determinism
from simulations.__main__ import main
from simulations.certificate_model_guards import Act, Move
from simulations.certificate_model_rules import Rule
from simulations.certificate_model_states import GENESIS, Kind, members_of
from simulations.certificate_model_walk import Run
from simulations.certificate_replay import Replay
from simulations.certificate_trace import Recorder
from simulations.certificate_trace_search import trace, trace_liar
from simulations.core_world import simulate_core
from simulations.liar import Liar, Lie
from simulations.liar_world import LyingCluster, tell
from simulations.runner import Options
from simulations.story_text import parse
from tests.protocol.raft.mutation_list import ROOT, load

MUTATIONS = {mutation.name: mutation for mutation in load()}
CALM = ""
CRASHES = "at 1.5 crash leader for 0.4 in-write\nat 3 crash leader for 0.4"
BLACKOUTS = "\n".join(f"at {at} blackout for 0.3" for at in range(1, 12))
LEFT_BEHIND = "at 1.5 cut both leader for 1.5\nat 5 cut both leader for 1.5"
LAGGING = "at 1 cut both 2 for 2\nat 2.9 crash leader for 4"


def told(lines: str, *, seed: int = 1, nodes: int = 3, seconds: float = 4.0) -> Recorder:
    """Return what the cores of a story of tier A did."""
    tale = parse(
        f"world tier=a seed={seed} nodes={nodes} observers=0 seconds={seconds:g}\nload clients=3 mean_s=0.2\n{lines}"
    )
    options = Options(tale.seed, tale.seconds, "story", voters=nodes, observers=0, tier="a")
    recorders: list[Recorder] = []
    simulate_core(
        options, tale.events, load=tale.load, watch=lambda cluster: recorders.append(Recorder(cluster))
    )
    return recorders[0]


class Sly(Liar):
    """Tells some members one history and some another, and shows to one alone that the one is proven."""

    def outgoing(self, target: NodeId, message: Message) -> tuple[Message, ...]:
        """Return what is sent in the place of what the core wants sent."""
        chosen = next(node for node in self._configuration.voters if node != self.me)
        return tuple(
            [
                replace(one, proof=None, certificate=None)
                if isinstance(one, AppendEntries) and target != chosen
                else one
                for one in super().outgoing(target, message)
            ]
        )


def slyly_told(seed: int = 6) -> Recorder:
    """Return what four honest members did whose fifth brought one of them to vote for what became of nothing."""
    with determinism.fake_signatures():
        cluster = LyingCluster(seed, Lie.EQUIVOCATE, voters=5)
        rng = determinism.stream(seed, "liar")
        cluster.liar = Sly(
            cluster.nodes[0].key, cluster.network_id, cluster.configuration, Lie.EQUIVOCATE, rng
        )
        recorder = Recorder(cluster, untold=(0,))
        tell(cluster, 12.0)
    return recorder


def mutate(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Take a rule out of the core, as `mutations.md` does, but in this process: every method of the module is replaced."""
    mutation = MUTATIONS[name]
    module = importlib.import_module(mutation.file.removesuffix(".py").replace("/", "."))
    space: dict[str, object] = {"__name__": module.__name__}
    text = mutation.apply((ROOT / mutation.file).read_text(encoding="utf-8"))
    exec(compile(text, mutation.file, "exec", dont_inherit=True), space)
    for kind in [
        one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__
    ]:
        for method, value in vars(space[kind.__name__]).items():
            if isinstance(value, types.FunctionType | property):
                monkeypatch.setattr(kind, method, value)


# --- agreement


def test_crashes_and_elections_are_as_the_model_has_them() -> None:
    came_to = Replay(told(CRASHES)).run()
    assert came_to.difference is None
    assert {
        "stand",
        "grant",
        "lead",
        "propose",
        "acknowledge",
        "vote",
        "learn",
        "crash",
    } <= came_to.moves.keys()
    assert came_to.lost > 0  # of what the crash of a disk that was writing took
    assert came_to.records > 100


def test_changes_of_members_are_as_the_model_has_them() -> None:
    came_to = Replay(told("at 1 remove-voter 2\nat 3 add-voter 2", seconds=6.0)).run()
    assert came_to.difference is None
    recorded = Replay(told("at 1 remove-voter 2", seconds=3.0))
    assert recorded.run().difference is None
    assert Kind.SWITCH in {block.kind for block in recorded.model.chain.blocks}


def test_who_leaves_goes_on_following_until_that_is_certified() -> None:
    replay = Replay(told("at 2 remove-voter 1\nat 2.005 crash leader for 1", seed=8, nodes=4, seconds=5))
    assert replay.run().difference is None
    chain, rules = replay.model.chain, replay.model.rules
    leaver = replay.world.nodes[1].statements
    openings = [ack.block for ack in leaver.acknowledgements if chain.blocks[ack.block].kind is Kind.OPENING]
    assert [rules.is_voter(1, block) for block in openings][-1:] == [False]


@pytest.mark.parametrize("lie", [Lie.FORGE_TIP, Lie.EQUIVOCATE])
def test_honest_members_beside_a_liar_do_what_the_model_allows(lie: Lie) -> None:
    traced = trace_liar(3, lie, voters=4, virtual_s=8.0)
    assert traced.comparison.difference is None
    assert traced.comparison.moves["lead"] > 0


def test_a_tail_that_was_voted_for_is_left_as_the_model_has_it() -> None:
    came_to = Replay(slyly_told()).run()
    assert came_to.difference is None
    assert came_to.moves["leave"] == 1


def test_seeds_draw_different_worlds_and_agree() -> None:
    traces = [trace(seed, 3.0) for seed in range(4)]
    assert [one.comparison.difference for one in traces] == [None] * 4
    assert len({one.world for one in traces}) > 2


def test_the_command_tells_what_was_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "--trace", "5", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["differing"] == 0
    assert printed["moves"]["vote"] > 0


def test_who_is_written_down_does_what_it_does_unseen() -> None:
    tale = parse(f"world tier=a seed=3 nodes=3 observers=0 seconds=4\n{CRASHES}")
    options = Options(3, 4.0, "story", voters=3, observers=0, tier="a")
    unseen = simulate_core(options, tale.events)
    assert simulate_core(options, tale.events, watch=Recorder).history_sha256 == unseen.history_sha256


# --- rules taken out of the core


@pytest.mark.parametrize(
    ("name", "seed", "lines", "words"),
    [
        ("vote-without-proof", 1, CALM, "does what the model does not allow: member 2 votes for"),
        ("vote-forgotten-in-a-crash", 1, CALM, "has last vote nothing"),
        ("elected-by-one", 1, CALM, "leads term 1"),
        ("acknowledged-without-marker", 1, CALM, "has log"),
        ("leader-without-marker", 1, CALM, "has log"),
        ("own-vote-not-remembered", 1, CALM, "has role CANDIDATE"),
        ("base-forgotten", 7, CRASHES, "crashes and comes back, and knows no more than"),
        ("vote-for-shorter-log", 0, LAGGING, "grants term"),
    ],
)
def test_a_rule_that_the_core_lacks_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, seed: int, lines: str, words: str
) -> None:
    mutate(monkeypatch, name)
    came_to = Replay(told(lines, seed=seed)).run()
    assert words in str(came_to.difference)
    assert came_to.tail


def test_a_vote_upon_less_than_is_known_to_be_certified_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    cast, named_first = finality.cast_vote, list[Digest]()

    def cast_below(*parts: Any, **named: Any) -> finality.CommitVote:
        named_first.append(named["base"])
        return cast(*parts, **named | {"base_height": Height(0), "base": named_first[0]})

    monkeypatch.setattr(finality, "cast_vote", cast_below)
    assert "upon genesis; in the model upon" in str(Replay(told(CALM)).run().difference)


@pytest.mark.parametrize(
    ("without", "words"),
    [
        ((), "votes for o1-t1-m3 upon genesis"),  # before it is proven
        (
            (Rule.COMMIT_PROOF,),
            "acknowledges o32-t3-m1 of member 1's log",
        ),  # in the place of what was voted for
        (
            (Rule.COMMIT_PROOF, Rule.VOTE_KEEPS_LOG),
            "votes for o32-t3-m1 upon d31-t2-m2",
        ),  # at a height for the second time
    ],
)
def test_of_two_votes_at_a_height_each_rule_finds_its_part(
    monkeypatch: pytest.MonkeyPatch, without: tuple[Rule, ...], words: str
) -> None:
    def vote_for_the_tip(self: Any) -> Height | None:
        voter = self._voter
        return voter.log.tip_height if voter.log.tip_height > voter.base[0] else None

    mutate(monkeypatch, "voted-block-given-up")
    monkeypatch.setattr(Certifying, "_target", vote_for_the_tip)
    came_to = Replay(told(LEFT_BEHIND, seed=0, seconds=8), without).run()
    assert words in str(came_to.difference)


def test_a_certificate_of_fewer_than_q_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Configuration, "certificate_quorum", property(lambda self: self.raft_quorum))
    two_away = "at 1 crash 3 for 3\nat 1 crash 4 for 3"  # three are r of five, and not q
    assert "learns the certificate" in str(Replay(told(two_away, seed=0, nodes=5)).run().difference)


def test_two_grants_in_one_term_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Election.answer_vote

    def answer_twice(self: Any, request: Any) -> bool:
        voter = self._voter
        if voter.hard.vote != voter.me:
            voter.hard = replace(voter.hard, vote=ZERO)
        self._granted = None
        return answer(self, request)

    monkeypatch.setattr(Election, "answer_vote", answer_twice)
    # Two candidates of one term have to meet: time-outs that pass together, but for when each node has started.
    monkeypatch.setattr(Election, "_draw", lambda _: limits.ELECTION_TICKS_MIN)
    assert "grants term" in str(Replay(told(BLACKOUTS, seed=11, seconds=12)).run().difference)


def test_a_proof_that_does_not_hold_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, "proof-unchecked")
    traced = trace_liar(4, Lie.FALSE_COMMIT, voters=4, virtual_s=8.0)
    assert "nobody can prove that" in str(traced.comparison.difference)


# --- the conditions


def test_whatever_a_search_enumerates_the_conditions_of_a_trace_allow() -> None:
    looked_at = 0
    for number in range(12):
        run = Run(11, number)
        run.go()
        world = run.model.first_world()
        for move in run.trace:
            for possible in run.model.moves.possible(world):
                if possible.act not in (Act.LOSE, Act.REJOIN, Act.BELIEVE):
                    assert run.model.moves.guards.allows(world, possible)
                    looked_at += 1
            world, _ = run.model.steps.after(world, move)
    assert looked_at > 2_000


def test_the_conditions_of_a_trace_allow_nothing_that_no_search_enumerates() -> None:
    rng, looked_at = random.Random(5), Counter[bool]()
    for number in range(30):
        run = Run(13, number)
        run.go()
        guards, blocks = run.model.moves.guards, list(members_of(run.world.blocks))
        possible = set(run.model.moves.possible(run.world))
        for member in run.model.setting.honest:
            node = run.world.nodes[member]
            moves = [Move(act, member, block) for act in (Act.VOTE, Act.LEARN) for block in blocks]
            moves += [Move(Act.LEAD, member, block, node.term) for block in blocks]
            moves += [
                Move(Act.PROPOSE, member, block, kind)
                for block in blocks
                for kind in (Kind.DATA, Kind.REJOIN)
            ]
            if run.model.moves.bounds.part_way:
                pairs = [(rng.choice(blocks), rng.choice(blocks)) for _ in range(50)]
                moves += [Move(Act.ACKNOWLEDGE, member, one, tip) for one, tip in pairs if one != GENESIS]
            for move in moves:
                assert guards.allows(run.world, move) == (move in possible), (number, move)
                looked_at[move in possible] += 1
    assert min(looked_at[True], looked_at[False]) > 50
