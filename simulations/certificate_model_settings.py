"""Who may take part in a guided search: drawn from a seed's randomness, never more liars than a configuration stands."""

from random import Random
from typing import Final

from simulations.certificate_model_states import NOBODY, Configuration, Setting

_VOTERS: Final = (3, 4, 4, 5)
_HONEST_VOTERS: Final = (3, 3, 4, 5)
_PLAIN: Final = 0.3
_WITNESS: Final = 0.25
_LEARNER: Final = 0.6
_CHANGE: Final = 0.7
_LIAR: Final = 0.65


def draw_setting(rng: Random, *, may_lie: bool = True) -> Setting:
    """Return 3 to 5 voters, with or without a witness, a learner, two changes of voters that may follow each other, a liar."""
    voters = tuple(range(rng.choice(_VOTERS if may_lie else _HONEST_VOTERS)))
    members = len(voters)
    if rng.random() < _PLAIN:
        return _with_liar(rng, Setting(members, (Configuration(voters),)), may_lie=may_lie)
    witnesses: tuple[int, ...] = ()
    if rng.random() < _WITNESS:
        witnesses, members = (members,), members + 1
    learner = members if rng.random() < _LEARNER else NOBODY
    members += learner != NOBODY
    first = Configuration(voters, witnesses)
    removed = rng.choice(voters) if len(voters) > 2 and rng.random() < _CHANGE else NOBODY
    configurations, changes = [first], list[tuple[int, int]]()
    for after in (_changed(first, learner, NOBODY), _changed(first, NOBODY, removed)):
        if after != first:
            changes.append((0, len(configurations)))
            configurations.append(after)
    if len(configurations) == 3:
        changes += [(1, 3), (2, 3)]
        configurations.append(_changed(first, learner, removed))
    return _with_liar(rng, Setting(members, tuple(configurations), tuple(changes)), may_lie=may_lie)


def _with_liar(rng: Random, setting: Setting, *, may_lie: bool) -> Setting:
    """Return the setting with a liar among the first signers, if one is drawn and no configuration is too small for it."""
    if not may_lie or rng.random() >= _LIAR:
        return setting
    liar = rng.choice(setting.configurations[0].signers)
    hostile = Setting(setting.members, setting.configurations, setting.changes, liar)
    return hostile if hostile.tolerates_its_liar() else setting


def _changed(before: Configuration, added: int, removed: int) -> Configuration:
    voters = [voter for voter in before.voters if voter != removed]
    return Configuration((*voters, added) if added != NOBODY else tuple(voters), before.witnesses)
