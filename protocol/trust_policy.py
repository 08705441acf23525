"""Whose word counts about another network: a policy file in the manner of C2SP tlog-policy.

    log <verifier key>                 a signer of the network: its node key, whose votes count, or its checkpoint key,
                                       whose signatures of notes do (type 0x01, named as the network's origin)
    witness <name> <verifier key>      somebody whose word counts: an outside witness (type 0x04), or such a signer
    group <name> <k>|all|any <name>…   as good as a witness, when k of these are; each name is in one group at most
    quorum <name>|none                 what has to be met, once, at the end

Names are defined on lines above those that use them. Lines are of ASCII words between spaces and tabs; empty ones and those
that begin with # say nothing. A third or fourth word with an address is allowed and not used. Different from tlog-policy:
a witness may be a signer of the log itself ("3 of their 4 voters and any 1 of our 2 witnesses").
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from protocol import limits
from protocol.checkpoint import KeyKind, NoteKey
from protocol.errors import Malformed, Refused
from protocol.identifiers import PublicKey

NONE = "none"
_WORDS = re.compile(r"[ \t]+")


@dataclass(frozen=True, slots=True)
class Group:
    """As good as a witness when `threshold` of its members are."""

    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """What `parse` read: keys of the log, named witnesses and groups, and the name of what has to be met."""

    logs: tuple[NoteKey, ...]
    witnesses: dict[str, NoteKey]
    groups: dict[str, Group]
    quorum: str

    @property
    def keys(self) -> tuple[NoteKey, ...]:
        """All keys whose signatures it may ask for."""
        return (*self.logs, *self.witnesses.values())

    def is_met(self, by: Collection[PublicKey]) -> bool:
        """Return whether the word of those who hold the keys `by` suffices: one log if any is listed, and the quorum."""
        signed = not self.logs or any(log.public in by for log in self.logs)
        return signed and (self.quorum == NONE or self._is_met(self.quorum, by))

    def _is_met(self, name: str, by: Collection[PublicKey]) -> bool:
        group = self.groups.get(name)
        if group is None:
            return self.witnesses[name].public in by
        return sum(self._is_met(member, by) for member in group.members) >= group.threshold


CERTIFICATE_ALONE = TrustPolicy((), {}, {}, NONE)
"""Nothing beyond the certificate that every header needs."""


class _Reader:
    """Takes a policy file line by line."""

    def __init__(self) -> None:
        self.logs: list[NoteKey] = []
        self.witnesses: dict[str, NoteKey] = {}
        self.groups: dict[str, Group] = {}
        self.quorum: str | None = None
        self._free: set[str] = set()
        """Names that are in no group yet: each witness counts in one way only."""

    def take(self, words: list[str]) -> None:
        match words:
            case ["log", key, *rest] if len(rest) <= 1:
                self.logs.append(self._key(key, (KeyKind.LOG,), self.logs))
            case ["witness", name, key, *rest] if len(rest) <= 1:
                taken = self._key(key, tuple(KeyKind), self.witnesses.values())
                self._define(name)
                self.witnesses[name] = taken
            case ["group", name, threshold, *members] if members:
                self._group(name, threshold, tuple(members))
            case ["quorum", name] if self.quorum is None:
                if name != NONE and name not in self.witnesses and name not in self.groups:
                    raise Malformed(f"'{name}' is not defined above")
                self.quorum = name
            case _:
                raise Malformed("neither log, witness, group, nor the one quorum")

    def _define(self, name: str) -> None:
        if name == NONE or name in self.witnesses or name in self.groups:
            raise Malformed(f"the name '{name}' is taken")
        self._free.add(name)

    def _group(self, name: str, threshold: str, members: tuple[str, ...]) -> None:
        count = {"all": len(members), "any": 1}.get(threshold, -1)
        if count < 0 and threshold.isdecimal() and len(threshold) < 4:
            count = int(threshold)
        if not 1 <= count <= len(members):
            raise Malformed(f"a group of {len(members)} has a threshold of 1 to {len(members)}, any or all")
        for member in members:
            if member not in self._free:
                raise Malformed(f"'{member}' is not defined above, or in a group already")
            self._free.discard(member)
        self._define(name)
        self.groups[name] = Group(count, members)

    @staticmethod
    def _key(text: str, kinds: Collection[KeyKind], others: Collection[NoteKey]) -> NoteKey:
        key = NoteKey.parse(text)
        if key.kind not in kinds:
            raise Malformed("a key of another kind")
        if any(other.public == key.public for other in others):
            raise Malformed("a key that is listed already")
        return key


def parse_policy(data: bytes, *, source: str) -> TrustPolicy:
    """Return the policy that a file spells; `source` names the file in a refusal.

    Raises:
        Refused: the line that is wrong, and why.
    """
    if len(data) > limits.POLICY_BYTES_MAX:
        raise Refused(f"{source} is too large for a policy; name another file")
    if not data.isascii() or any(byte < 32 and byte not in b"\t\n" for byte in data):
        raise Refused(f"{source} is no policy: it holds other characters than ASCII text; name another file")
    reader = _Reader()
    for number, line in enumerate(data.decode("ascii").split("\n"), 1):
        words = [word for word in _WORDS.split(line) if word]
        if not words or words[0].startswith("#"):
            continue
        try:
            reader.take(words)
        except Malformed as fault:
            raise Refused(f"{source}, line {number}: {fault}; correct it") from None
    if reader.quorum is None:
        raise Refused(f"{source} has no quorum line; add one, 'quorum none' if the certificate suffices")
    return TrustPolicy(tuple(reader.logs), reader.witnesses, reader.groups, reader.quorum)
