"""Brings our checkpoints to outside witnesses and keeps their cosignatures (C2SP tlog-witness, the log's side).

newest checkpoint ──► old size that the witness has + consistency proof ──► 200: cosignature kept with the checkpoint
                                 ▲                                     ──► 409: it has another size; from there, at once
                                 └─────────────────────────────────────┘   anything else: said to the operator, later again
"""

from collections.abc import Awaitable, Callable

from node.checkpoints import Checkpoints
from node.event_log import EventLog
from node.http_client import Answer
from node.log_settings import OutsideWitness
from node.ports import Clock
from node.tree import Tree
from protocol.checkpoint import SignedCheckpoint, parse_signatures, parse_size
from protocol.errors import Invalid, Malformed, RemoteFault, Unavailable
from protocol.log_witness import SIZE_MEDIA_TYPE, AddCheckpoint
from protocol.merkle import Head

Post = Callable[[str, bytes], Awaitable[Answer]]

_LOOK_MS = 1_000
_EVERY_MS = 5_000
"""Between two cosigned checkpoints: a witness serves many logs, and needs not see every second of ours."""
_RETRY_MS_MIN, _RETRY_MS_MAX = 2_000, 300_000
_TURNS_MAX = 3
"""Requests of one push: with the size that we believe in, with the one that the witness names, and once more if it moved."""
_MEANINGS = {
    400: "it does not understand us; is it a witness of the C2SP kind?",
    403: "it does not know the keys that sign this ledger's checkpoints: give its operator those of `carechain audit checkpoint --json`",
    404: "it does not know this ledger: give its operator the origin and keys of `carechain audit checkpoint --json`",
    422: "it says that our ledger does not continue what it has cosigned: two histories may have been shown; compare with other members",
}


class WitnessClient:
    """Talks to one outside witness (`run`). `trouble` is a sentence for the operator, "" when there is nothing to say."""

    def __init__(
        self,
        witness: OutsideWitness,
        *,
        checkpoints: Checkpoints,
        tree: Tree,
        post: Post,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self.witness = witness
        self._checkpoints = checkpoints
        self._tree = tree
        self._post = post
        self._clock = clock
        self._log = log
        self._size = 0
        self.trouble = ""

    async def run(self) -> None:
        """Push until cancelled."""
        failures = 0
        while True:
            note = self._checkpoints.newest()
            if note is None or self._has(note):
                await self._clock.sleep_ms(_LOOK_MS)
                continue
            try:
                await self.push(note)
            except (Unavailable, RemoteFault) as reason:
                if self.trouble != str(reason):
                    self._log.warning(
                        "a witness did not cosign", witness=self.witness.key.name, reason=str(reason)
                    )
                self.trouble = str(reason)
                await self._clock.sleep_ms(min(_RETRY_MS_MIN << min(failures, 16), _RETRY_MS_MAX))
                failures += 1
            else:
                self.trouble, failures = "", 0
                await self._clock.sleep_ms(_EVERY_MS)

    async def push(self, note: SignedCheckpoint) -> None:
        """Have a checkpoint cosigned, and keep the cosignature.

        Raises:
            Unavailable: not now, for our reasons or its.
            RemoteFault: it refuses, or what it answers does not hold; the sentence says what to do.
        """
        for _ in range(_TURNS_MAX):
            answer = await self._ask(note)
            if answer.status == 200:
                self._take(note, answer)
                return
            if answer.status != 409:
                meaning = _MEANINGS.get(answer.status, "try later, or ask its operator")
                raise Invalid(f"the witness {self.witness.key.name} answers {answer.status}: {meaning}")
            self._size = self._size_on_record(note, answer)
        raise Unavailable(
            f"the witness {self.witness.key.name} is being brought checkpoints by others; later again"
        )

    async def _ask(self, note: SignedCheckpoint) -> Answer:
        checkpoint = note.checkpoint
        old = min(self._size, checkpoint.size)
        proof = self._tree.consistency_proof(old, Head(checkpoint.size, checkpoint.root))
        return await self._post(
            f"{self.witness.url}/add-checkpoint", AddCheckpoint(old, proof, note).encode()
        )

    def _size_on_record(self, note: SignedCheckpoint, answer: Answer) -> int:
        """Return the size that a witness says it has cosigned.

        Raises:
            Malformed: it does not say.
            Invalid: it holds another root for that size.
            Unavailable: it has seen a larger checkpoint than this one.
        """
        name = self.witness.key.name
        if answer.media_type != SIZE_MEDIA_TYPE or not answer.body.endswith(b"\n"):
            raise Malformed(f"the witness {name} answers 409 without a size")
        size = parse_size(answer.body[:-1].decode("ascii", "replace"))
        if size == min(self._size, note.checkpoint.size):
            raise Invalid(
                f"the witness {name} has cosigned another history of {size} transactions: compare with other members"
            )
        if size > note.checkpoint.size:
            raise Unavailable(
                f"the witness {name} has seen {size} transactions, more than are signed here yet"
            )
        return size

    def _take(self, note: SignedCheckpoint, answer: Answer) -> None:
        try:
            lines = parse_signatures(answer.body.decode())
        except UnicodeDecodeError:
            raise Malformed("a cosignature that is no text") from None
        key = self.witness.key
        theirs = tuple(line for line in lines if line.is_named(key))
        if not theirs:
            raise Invalid(
                f"the answer of the witness {key.name} holds no signature by its key; correct the key in config.toml"
            )
        self._checkpoints.add(SignedCheckpoint(note.checkpoint, theirs))
        self._size = note.checkpoint.size

    def _has(self, note: SignedCheckpoint) -> bool:
        return any(line.is_named(self.witness.key) for line in note.signatures)
