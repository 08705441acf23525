"""The words for blocks and moves: how a way to a broken promise is told."""

from string import ascii_lowercase
from typing import Final, assert_never

from simulations.certificate_model_guards import Act, Move
from simulations.certificate_model_states import GENESIS, Chain, Configuration, Kind, Setting, World

_KINDS: Final = {Kind.OPENING: "o", Kind.DATA: "d", Kind.SWITCH: "s", Kind.REJOIN: "r", Kind.GENESIS: "g"}


def label(chain: Chain, block: int) -> str:
    """Return a block as people read it: kind, height, term, leader counted from 1, and the version, as `d2-t1-m4b`."""
    if block == GENESIS:
        return "genesis"
    made = chain.blocks[block]
    text = f"{_KINDS[made.kind]}{made.height}-t{made.term}-m{made.leader + 1}"
    if made.kind is Kind.SWITCH:
        return f"{text}-to-{made.detail}"
    if made.kind is Kind.REJOIN:
        return f"{text}-of-{(made.detail >> 8) + 1}"
    return text + ascii_lowercase[made.detail % 26] if made.detail else text


def sentence(chain: Chain, world: World, move: Move) -> str:
    """Return what a move does in a world, as a sentence; members are counted from 1."""
    member, block = f"member {move.member + 1}", label(chain, move.block) if move.block >= 0 else ""
    term = world.nodes[move.member].term
    match move.act:
        case Act.STAND:
            text = f"stands for term {term + 1} and shows {label(chain, world.nodes[move.member].log)}"
        case Act.GRANT:
            text = f"grants term {move.detail} to member {move.other + 1}, who shows {block}"
        case Act.LEAD:
            text = f"leads term {move.other} and opens it upon {block}"
        case Act.PROPOSE:
            made = chain.child(move.block, chain.term[move.block], move.member, Kind(move.other), move.detail)
            text = f"makes {label(chain, made)} upon {block}"
        case Act.ACKNOWLEDGE:
            leader = f"member {chain.leader[move.other] + 1}'s log up to {label(chain, move.other)}"
            text = f"acknowledges {block} of {leader} in term {chain.term[move.other]}"
        case Act.VOTE:
            base = world.nodes[move.member].certified
            text = f"votes for {block} upon {label(chain, base if chain.is_within(base, move.block) else GENESIS)}"
        case Act.LEARN:
            text = f"learns the certificate of {block}"
        case Act.BELIEVE:
            text = f"takes its leader's word that {block} is committed"
        case Act.CRASH:
            text = f"crashes and comes back{f', and knows no more than {block} to be certified' if block else ''}"
        case Act.LEAVE:
            text = f"gives up its tail for the certificate of {block}"
        case Act.HEAR:
            text = f"hears of term {move.detail}"
        case Act.LOSE:
            text = "loses its store"
        case Act.REJOIN:
            text = f"comes back by {block}"
        case _:
            assert_never(move.act)
    return f"{member} {text}"


def describe(setting: Setting) -> str:
    """Return who takes part, as one line."""
    first, *others = [_members(each) for each in setting.configurations]
    parts = [f"voters {first}"]
    if setting.changes:
        parts += [f"a ballot may lead to {' or '.join(others)}"]
    parts.append(f"member {setting.liar + 1} lies" if setting.liar >= 0 else "nobody lies")
    return "; ".join(parts)


def _members(configuration: Configuration) -> str:
    voters = " ".join(str(voter + 1) for voter in configuration.voters)
    witnesses = " ".join(str(witness + 1) for witness in configuration.witnesses)
    return f"{voters} with witness {witnesses}" if witnesses else voters
