"""`carechain bench verify`: what a receipt costs to check, and how long it is, behind ever more changes of the signers.

Processor time of one thread, from the file's bytes to the finding, beyond the start of the program; the shortest of several
rounds, since other programs only ever make it longer. Five voters: each third change one comes as a learner, becomes a
voter, and another leaves.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from node.bench import ingredients
from node.bench.ingredients import Row, figure, rounded, row
from node.bench.made_history import MadeHistory, transactions
from protocol import block, certificate, finality, limits, receipt_file
from protocol.signing import SigningKey, verify

TARGET_MS = 50.0
CHANGES = 100
_STEPS = (0, 10, CHANGES)
_BLOCKS = (1, 10, limits.BLOCK_TRANSACTIONS_MAX)
_VOTERS = 5
_ROUNDS = 7
_VOTE_FORM_BYTES = 140


def measure(*, compare: bool = False, show: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure and return `figures`, `ingredients` and, with `compare`, `ratios`.

    Any: the values of a JSON document.
    """
    figures: list[Row] = []
    for changes in _STEPS:
        show(f"checking a receipt behind {changes} changes …")
        data, votes = _receipt(changes, limits.BLOCK_TRANSACTIONS_MAX)
        spent = _least_ms(partial(_check, data))
        target = TARGET_MS if changes == CHANGES else None
        figures.append(figure(f"verify_{changes}_changes", spent, "ms", target, least=False))
        figures.append(figure(f"bytes_{changes}_changes", len(data), "bytes", None, least=False))
    for size in _BLOCKS:
        data, _ = _receipt(0, size)
        figures.append(figure(f"bytes_{size}_in_block", len(data), "bytes", None, least=False))
    key, form = SigningKey(bytes(32)), bytes(_VOTE_FORM_BYTES)
    signature = key.sign(form)
    alone = _least_ms(lambda: [verify(key.public, form, signature) for _ in range(votes)])
    parts = [row("cores", ingredients.cores(), ""), row("votes", votes, ""), row("votes_alone", alone, "ms")]
    share = {
        "name": "verify",
        "of": "its votes alone",
        "machine": rounded(alone),
        "share": rounded(alone / spent),
    }
    return {"figures": figures, "ingredients": parts, "ratios": [share] if compare else []}


def _receipt(changes: int, size: int) -> tuple[bytes, int]:
    """Return the receipt of a transaction in a block of `size` behind so many changes, and how many votes are in it."""
    history = MadeHistory.of(*(f"house {n}" for n in range(_VOTERS)))
    history.rotate(changes)
    cut = history.cut(*transactions(size, history.network))
    receipt = history.receipt(cut.height, size // 2)
    certificates = [receipt.proof.certificate, *(one.certificate for one in history.certified_changes)]
    return receipt_file.encode(receipt), sum(len(one.votes) for one in certificates)


def _check(data: bytes) -> None:
    """Check a receipt as a program that has just begun: nothing is remembered of an earlier round."""
    for remembered in (finality.vote_valid, certificate.acknowledgement_valid, block.header_hash):
        remembered.cache_clear()
    receipt_file.check(receipt_file.decode(data))


def _least_ms(work: Callable[[], object]) -> float:
    spent = []
    for _ in range(_ROUNDS):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return min(spent) * 1000
