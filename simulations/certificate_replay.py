"""Holds what real cores did (`certificate_trace`) against the model of certificates, deed by deed.

Each deed becomes a move of the model. The model must allow it where it stands, and what the member then holds must be what
the core holds: term, role, spent vote, log, marker, commit vote, certified block, and that what it takes for ordered can be
proven. The first difference ends the replay.

What the model does not say, and what becomes of it here
--------------------------------------------------------
- Messages: signed statements may reach anybody at any time, so that a core was told something is not checked, but that
  somebody had said it. Losses, delays and doubles leave no mark. Nor is it checked here that a statement leaves only when it
  is durable: that is `checkers.PersistBeforeSend`'s and `core_checkers.VoteChains`'.
- A core hears of later terms in other ways than by what it signs: HEAR raises a term when the core's is higher.
- A leader or candidate that gives up by itself is a CRASH that costs it nothing.
- Who does not vote acknowledges too, for its leader's sake. That counts for nothing, and the model has no such thing: of
  learners and witnesses only votes and certificates are compared, and log and marker from the block on that makes
  them voters.
- A block stands for its header (`detail` counts headers that agree in all the model has): bodies, times, trees are not
  compared. Frames, batches and windows are nothing to the model: one acknowledgement stands for a whole frame.
- Bounds are wide open, so nothing is left out above some height. Rejoin and the loss of a store are not met in tier A.
- Tier A installs on a member what another one has applied without asking. Where three signers let a liar fork what is final,
  the replay ends when that goes over another final story: the product shows such a fork and stops.
- The liar is not looked at: the model counts in whatever it could have signed, and a block of its is one it could make.
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from protocol.identifiers import ZERO, Digest, NodeId
from protocol.raft.state import Role as CoreRole
from simulations.certificate_model_evidence import Evidence
from simulations.certificate_model_guards import Act, Move
from simulations.certificate_model_rules import Rule
from simulations.certificate_model_search import Model
from simulations.certificate_model_states import (
    GENESIS,
    NOBODY,
    NOTHING,
    Acknowledgement,
    Block,
    Bounds,
    Configuration,
    Kind,
    Node,
    Role,
    Setting,
)
from simulations.certificate_model_text import label, sentence
from simulations.certificate_trace import Deed, Made, Record, Recorder, Seen

_FAR: Final = 1 << 40
_TAIL: Final = 25
_ROLES: Final = {
    CoreRole.FOLLOWER: Role.FOLLOWER,
    CoreRole.PRE_CANDIDATE: Role.FOLLOWER,
    CoreRole.CANDIDATE: Role.CANDIDATE,
    CoreRole.LEADER: Role.LEADER,
}


class Differs(Exception):
    """The model does not allow what a core did, or holds something else afterwards."""


class Ends(Exception):
    """The world did what no core does: there is nothing to compare any more."""


@dataclass(slots=True)
class Comparison:
    """What came of one replay. `difference` is the first one, and `tail` the last moves before it.

    `ended`: why the replay stopped before the end of the recording, with everything the same up to there.
    """

    records: int = 0
    lost: int = 0
    blocks: int = 0
    switches: int = 0
    moves: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    beside: int = 0
    """Acknowledgements of who does not vote."""
    difference: str | None = None
    ended: str | None = None
    tail: tuple[str, ...] = ()


class Replay:
    """One recording, over a model made for its members. `without`: rules of the model that are left out."""

    def __init__(self, recorder: Recorder, without: Iterable[Rule] = ()) -> None:
        self._recorder = recorder
        self._numbers: dict[Digest, int] = {recorder.genesis.hash: GENESIS}
        self._versions = Counter[Block]()
        self._configurations = {digest: number for number, digest in enumerate(recorder.configurations)}
        bounds = Bounds(_FAR, _FAR, _FAR, _FAR, part_way=True, forgets=True, leaves=True)
        self.model = Model(self._setting(), bounds, without, convicts=False)
        self.world = self.model.first_world()
        self.came_to = Comparison()
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._openings: dict[int, list[Digest]] = {}
        for digest, made in recorder.blocks.items():
            if made.opens:
                self._openings.setdefault(made.header.term, []).append(digest)

    def run(self) -> Comparison:
        """Replay everything, or up to the first difference."""
        came_to = self.came_to
        try:
            for record in self._recorder.records:
                self._replay(record)
            self._judge()
        except Differs as difference:
            came_to.difference = str(difference)
            came_to.tail = tuple(self._tail)
        except Ends as end:
            came_to.ended = str(end)
        came_to.blocks = len(self.model.chain.blocks)
        came_to.switches = sum(block.kind is Kind.SWITCH for block in self.model.chain.blocks)
        return came_to

    # --- records --------------------------------------------------------------------------------------------------

    def _replay(self, record: Record) -> None:
        self.came_to.records += 1
        self.came_to.lost += record.is_lost
        try:
            for deed in record.deeds:
                self._do(record.member, deed)
            if not record.is_lost:
                self._settle(record.member, record.seen)
                self._compare(record.member, record.seen)
        except Differs as difference:
            raise Differs(f"at {record.at_s:.6f} s member {record.member + 1} {difference}") from None

    def _do(self, member: int, deed: Deed) -> None:
        node, block = self.world.nodes[member], self._number(deed.block)
        match deed.act:
            case Act.STAND:
                self._stand(member, deed)
            case Act.GRANT:
                self._take(Move(Act.GRANT, member, block, self._member(deed.other), deed.term))
            case Act.LEAD | Act.PROPOSE:
                self._make(member, block)
            case Act.ACKNOWLEDGE:
                self._acknowledge(member, block, deed.term)
            case Act.VOTE:
                self._vote(member, block, self._number(Digest(deed.other or ZERO)))
            case Act.LEARN:
                if not self.model.chain.is_within(block, node.certified):
                    self._take(Move(Act.LEARN, member, block))
            case Act.LEAVE:
                self._take(Move(Act.LEAVE, member, block))
            case Act.CRASH:
                self._start(member, block)
            case _:
                raise AssertionError(f"a recorder does not tell of {deed.act}")

    def _take(self, move: Move) -> None:
        """Make a move that the model must allow, and that must break no promise."""
        model = self.model
        said = sentence(model.chain, self.world, move)
        self._tail.append(said)
        if not model.moves.guards.allows(self.world, move):
            raise Differs(f"does what the model does not allow: {said}")
        self.world, broken = model.steps.after(self.world, move)
        self.came_to.moves[move.act.name.lower()] += 1
        if broken is not None and (model.setting.tolerates_its_liar() or not broken.startswith("fork")):
            raise Differs(f"breaks a promise: {said}; {broken}")

    # --- deeds ----------------------------------------------------------------------------------------------------

    def _stand(self, member: int, deed: Deed) -> None:
        self._hear(member, deed.term - 1)
        node = self.world.nodes[member]
        shown = self._number(deed.block), deed.marker_term, self._number(Digest(deed.other or ZERO))
        if shown != (node.log, node.marker_term, node.certified):
            raise Differs(
                f"shows tip {self._label(shown[0])}, marker term {shown[1]} and base {self._label(shown[2])}; "
                f"in the model {self._label(node.log)}, {node.marker_term} and {self._label(node.certified)}"
            )
        self._take(Move(Act.STAND, member))

    def _make(self, member: int, block: int) -> None:
        made = self.model.chain.blocks[block]
        if made.kind is Kind.OPENING:
            move = Move(Act.LEAD, member, made.parent, made.term)
        else:
            move = Move(Act.PROPOSE, member, made.parent, made.kind, made.detail)
        self._take(move)
        if not self.world.blocks >> block & 1:
            raise Differs(f"makes {self._label(block)}, a second block where it has made one")

    def _acknowledge(self, member: int, block: int, term: int) -> None:
        chain, node = self.model.chain, self.world.nodes[member]
        if not self.model.rules.follows(member, block):
            self.came_to.beside += 1
            return
        if any(ack.term == term and chain.is_within(block, ack.block) for ack in self._acknowledged(node)):
            self.came_to.repeated += 1
            return
        tip = block if chain.term[block] == term else self._opening(block, term)
        self._take(Move(Act.ACKNOWLEDGE, member, block, tip))

    def _acknowledged(self, node: Node) -> tuple[Acknowledgement, ...]:
        return node.statements.acknowledgements

    def _opening(self, block: int, term: int) -> int:
        """Return an opening of a term that stands upon a block, and exists or could have been made by the liar."""
        chain, lies, world = self.model.chain, self.model.moves.lies, self.world
        known = [self._number(digest) for digest in self._openings.get(term, ())]
        liar = self.model.setting.liar
        for node in world.nodes if liar != NOBODY else ():
            # Nobody may have taken the liar's opening, though its leadership was followed.
            tips = [one.tip for one in node.statements.grants if (one.term, one.candidate) == (term, liar)]
            known += [chain.child(tip, term, liar, Kind.OPENING) for tip in tips]
        for opening in known:
            if chain.is_within(block, opening) and lies.can_be_made(world, opening):
                return opening
        raise Differs(f"acknowledges {self._label(block)} in term {term}, which nobody opened upon it")

    def _vote(self, member: int, block: int, base: int) -> None:
        chain, node = self.model.chain, self.world.nodes[member]
        if any((vote.block, vote.base) == (block, base) for vote in node.statements.votes):
            self.came_to.repeated += 1
            return
        known = node.certified if chain.is_within(node.certified, block) else GENESIS
        if base != known:
            raise Differs(
                f"votes for {self._label(block)} upon {self._label(base)}; in the model upon {self._label(known)}"
            )
        self._take(Move(Act.VOTE, member, block))

    def _start(self, member: int, certified: int) -> None:
        node, chain = self.world.nodes[member], self.model.chain
        if node.role is not Role.FOLLOWER:
            self._take(Move(Act.CRASH, member))
        if chain.is_within(certified, node.certified):
            if certified != node.certified:
                self._take(Move(Act.CRASH, member, certified))
        else:
            is_fork = chain.conflict(certified, node.certified)
            if is_fork and not self.model.setting.tolerates_its_liar():
                raise Ends(f"member {member + 1} was installed over another final story")
            self._take(Move(Act.LEARN, member, certified))  # it was installed, or has joined

    def _hear(self, member: int, term: int) -> None:
        if self.world.nodes[member].term < term:
            self._take(Move(Act.HEAR, member, detail=term))

    # --- what is held ---------------------------------------------------------------------------------------------

    def _settle(self, member: int, seen: Seen) -> None:
        """Let the model's member hear of the core's term, and give up what the core has given up by itself."""
        self._hear(member, seen.term)
        role = self.world.nodes[member].role
        if role not in (Role.FOLLOWER, _ROLES[seen.role]):
            self._take(Move(Act.CRASH, member))

    def _compare(self, member: int, seen: Seen) -> None:
        node, rules, chain = self.world.nodes[member], self.model.rules, self.model.chain
        log, vote = self._number(seen.log), self._number_or_nothing(seen.vote)
        pairs: list[tuple[str, object, object]] = [
            ("term", seen.term, node.term),
            ("role", _ROLES[seen.role].name, node.role.name),
            ("spent vote", seen.has_voted, node.spent == node.term > 0),
            ("last vote", self._label(vote), self._label(node.vote)),
            ("certified block", self._label(self._number(seen.certified)), self._label(node.certified)),
        ]
        if log == GENESIS or rules.follows(member, log):
            pairs.append(("log", self._label(log), self._label(node.log)))
        marker = self._number_or_nothing(seen.marker)
        if marker not in (NOTHING, GENESIS) and rules.follows(member, marker):
            held = f"{self._label(node.marker)} in term {node.marker_term}"
            pairs.append(("marker", f"{self._label(marker)} in term {seen.marker_term}", held))
        for name, real, modelled in pairs:
            if real != modelled:
                raise Differs(f"has {name} {real}; the model's has {modelled}")
        ordered = self._number(seen.ordered)
        if not (self.world.proven | self.world.final) >> ordered & 1:
            raise Differs(f"takes {self._label(ordered)} for ordered, and nobody can prove that")
        if not chain.is_within(ordered, log):
            raise Differs(f"takes {self._label(ordered)} for ordered, which is not in its log")

    def _judge(self) -> None:
        """Hold all that each honest member has signed against it (E1 to E5)."""
        model, final = self.model, self.world.final
        evidence = Evidence(model.chain, model.rules.without)
        # Of two certified stories each speaks against the bases of the other, until its certificate is shown (E3b).
        cleared = () if model.setting.tolerates_its_liar() else ("E3b",)
        for member in model.setting.honest:
            said, headers = (
                self.world.nodes[member].statements,
                self.world.blocks & model.chain.made_by[member],
            )
            for name in evidence.convictions(said, headers, final):
                if name not in cleared:
                    raise Differs(f"in the end {name} convicts member {member + 1}, who kept to the rules")

    # --- names ----------------------------------------------------------------------------------------------------

    def _setting(self) -> Setting:
        recorder = self._recorder
        configurations = tuple(
            [
                Configuration(tuple(map(self._member, one.voters)), tuple(map(self._member, one.witnesses)))
                for one in recorder.configurations.values()
            ]
        )
        changes = {
            (self._configuration(made.header.config_hash), self._configuration(made.header.next_config_hash))
            for made in recorder.blocks.values()
            if made.header.next_config_hash != ZERO and made.header.height > 0
        }
        liar = next(iter(recorder.untold), NOBODY)
        return Setting(len(recorder.members), configurations, tuple(sorted(changes)), liar)

    def _configuration(self, digest: bytes) -> int:
        return self._configurations[Digest(digest)]

    def _member(self, node: object) -> int:
        return self._recorder.members[NodeId(node)] if isinstance(node, bytes) else NOBODY

    def _number_or_nothing(self, digest: bytes) -> int:
        return NOTHING if digest == ZERO else self._number(Digest(digest))

    def _number(self, digest: Digest) -> int:
        """Return the model's number of a block, and give numbers to its ancestors; what has no known parent was forged."""
        missing = list[tuple[Digest, Made]]()
        blocks, numbers = self._recorder.blocks, self._numbers
        while digest not in numbers and digest in blocks:
            missing.append((digest, blocks[digest]))
            digest = Digest(blocks[digest].header.prev_hash)
        parent = numbers.get(digest, GENESIS)
        for name, made in reversed(missing):
            header = made.header
            kind = (
                Kind.OPENING if made.opens else Kind.SWITCH if header.next_config_hash != ZERO else Kind.DATA
            )
            detail = self._configuration(header.next_config_hash) if kind is Kind.SWITCH else 0
            block = Block(parent, header.height, header.term, self._member(header.leader), kind, detail)
            version = self._versions[block]
            self._versions[block] += 1
            parent = numbers[name] = self.model.chain.number(
                block._replace(detail=version) if kind is not Kind.SWITCH else block
            )
        return parent

    def _label(self, block: int) -> str:
        return "nothing" if block == NOTHING else label(self.model.chain, block)
