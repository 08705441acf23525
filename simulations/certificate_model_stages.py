"""What is looked at exhaustively: small settings with bounds that a machine can come to the end of, and where each begins."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from simulations.certificate_model_guards import Act, Move
from simulations.certificate_model_states import GENESIS, Bounds, Chain, Configuration, Kind, Setting

_THREE: Final = Configuration((0, 1, 2))
_FOUR: Final = Configuration((0, 1, 2, 3))
_FIVE: Final = Configuration((0, 1, 2, 3, 4))
_WITHOUT_FIRST: Final = Configuration((1, 2, 3))

Root = Callable[[Chain, Setting], tuple[Move, ...]]


@dataclass(frozen=True, slots=True)
class Stage:
    """A setting, its bounds, and the moves that are made before the search begins; they count for the bounds."""

    setting: Setting
    bounds: Bounds
    root: Root = lambda _chain, _setting: ()


def _led(chain: Chain, setting: Setting) -> tuple[Move, ...]:
    """Member 1 leads term 1, and everybody knows that its opening is certified."""
    voters = tuple([voter for voter in setting.configurations[0].voters if voter != setting.liar])
    opening = chain.child(GENESIS, 1, 0, Kind.OPENING)
    return (
        *_elected(0, voters[1:], GENESIS, 1),
        *(Move(Act.ACKNOWLEDGE, voter, opening, opening) for voter in voters),
        *(Move(Act.VOTE, voter, opening) for voter in voters),
        *(Move(Act.LEARN, member, opening) for member in setting.honest),
    )


def _equivocated(chain: Chain, setting: Setting) -> tuple[Move, ...]:
    """The liar leads term 1 and has two openings: members 1 and 2 have the one, member 3 the other."""
    one, other = (chain.child(GENESIS, 1, setting.liar, Kind.OPENING, version) for version in range(2))
    return (
        Move(Act.GRANT, 0, GENESIS, setting.liar, 1),
        Move(Act.GRANT, 1, GENESIS, setting.liar, 1),
        Move(Act.ACKNOWLEDGE, 0, one, one),
        Move(Act.ACKNOWLEDGE, 1, one, one),
        Move(Act.ACKNOWLEDGE, 2, other, other),
    )


def _figure_8(chain: Chain, _setting: Setting) -> tuple[Move, ...]:
    """Member 1 alone has a block of term 1, member 3 one of term 2; member 1 leads term 3 (Raft §5.4.2, Figure 8 a to c)."""
    first = chain.child(GENESIS, 1, 0, Kind.OPENING)
    second = chain.child(GENESIS, 2, 2, Kind.OPENING)
    return (
        *_elected(0, (1,), GENESIS, 1),
        Move(Act.ACKNOWLEDGE, 0, first, first),
        Move(Act.STAND, 2),
        *_elected(2, (1,), GENESIS, 2),
        Move(Act.ACKNOWLEDGE, 2, second, second),
        Move(Act.CRASH, 0),
        Move(Act.CRASH, 2),
        Move(Act.STAND, 0),
        *_elected(0, (1,), first, 3),
    )


def _two_ballots(chain: Chain, setting: Setting) -> tuple[Move, ...]:
    """Member 2 leads term 2; member 1, who alone has a switch that adds a voter, leads term 3 (Ongaro's bug of 2015)."""
    opening = chain.child(GENESIS, 1, 0, Kind.OPENING)
    switch = chain.child(opening, 1, 0, Kind.SWITCH, 1)
    return (
        *_led(chain, setting),
        Move(Act.PROPOSE, 0, opening, Kind.SWITCH, 1),
        Move(Act.ACKNOWLEDGE, 0, switch, switch),
        Move(Act.CRASH, 0),
        *_elected(1, (2, 3), opening, 2),
        Move(Act.STAND, 0),
        *_elected(0, (3, 4), switch, 3),
    )


def _elected(leader: int, voters: tuple[int, ...], tip: int, term: int) -> tuple[Move, ...]:
    """Return how a member is elected that shows a tip, and opens its term."""
    grants = [Move(Act.GRANT, voter, tip, leader, term) for voter in voters]
    return (Move(Act.STAND, leader), *grants, Move(Act.LEAD, leader, tip, term))


STAGES: Final = {
    "one-height": Stage(Setting(4, (_FOUR,), (), 3), Bounds(terms=2, heights=1, stands=2)),
    "honest": Stage(Setting(3, (_THREE,)), Bounds(terms=2, heights=2, stands=2)),
    "lying-leader": Stage(Setting(4, (_FOUR,), (), 3), Bounds(terms=2, heights=2, stands=0)),
    "equivocated": Stage(Setting(4, (_FOUR,), (), 3), Bounds(terms=2, heights=2, stands=0), _equivocated),
    "left": Stage(
        Setting(4, (_FOUR,), (), 3),
        Bounds(terms=2, heights=1, stands=2, crashes=1, forgets=True, leaves=True),
        _equivocated,
    ),
    "led": Stage(Setting(4, (_FOUR,), (), 3), Bounds(terms=2, heights=2, stands=2), _led),
    "led-on": Stage(Setting(4, (_FOUR,), (), 3), Bounds(terms=2, heights=3, stands=2), _led),
    "rejoin": Stage(Setting(4, (_FOUR,), (), 3), Bounds(terms=2, heights=2, stands=1, losses=1), _led),
    "switch": Stage(Setting(5, (_FOUR, _FIVE), ((0, 1),), 3), Bounds(terms=2, heights=2, stands=1), _led),
    "figure-8": Stage(
        Setting(3, (_THREE,)), Bounds(terms=4, heights=2, stands=7, crashes=1, part_way=True), _figure_8
    ),
    "two-ballots": Stage(
        Setting(5, (_FOUR, _FIVE, _WITHOUT_FIRST), ((0, 1), (0, 2))),
        Bounds(terms=3, heights=3, stands=4, crashes=1),
        _two_ballots,
    ),
}
"""By name. Never more than one liar, one switch on a chain, one loss of a store."""
