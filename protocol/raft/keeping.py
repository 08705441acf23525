"""Certificates that no crash may cost a node: those of configuration blocks (ledger.md 7.2).

Any other can be made again from the votes of its signers, or fetched. Of the signers of a change some may leave by it, and be
gone (`departures`): so this one is written synchronously, and taken up again at the start although what it certifies has
not been applied.
"""

from collections.abc import Callable

from protocol.finality import Certificate
from protocol.identifiers import ZERO, Height
from protocol.raft.log import Log


class Keeping:
    """The certificates of configuration blocks that are not durable here yet, rising."""

    def __init__(self) -> None:
        self._due: list[Certificate] = []

    @property
    def is_due(self) -> bool:
        """Whether `take` would return anything."""
        return bool(self._due)

    def add(self, certificate: Certificate) -> None:
        """Hear of a certificate that was taken here."""
        if certificate.header.next_config_hash != ZERO:
            self._due.append(certificate)

    def reach(self, certified: Height) -> Height:
        """Return up to where, `certified` at most, this node holds certificates, and no crash takes a change's from it."""
        return Height(self._due[0].height - 1) if self._due else certified

    def take(self, certificate_at: Callable[[Height], Certificate | None]) -> tuple[Certificate, ...]:
        """Return what is to be written: each with that of the block below it.

        Upon that one whoever catches up takes the configuration (ledger.md 7.2, 1). `certificate_at` returns the one with the
        greatest height at or below a height.
        """
        keep: list[Certificate] = []
        for certificate in self._due:
            below = certificate_at(Height(certificate.height - 1))
            keep += [certificate] if below is None else [below, certificate]
        return tuple(keep)

    def mark_kept(self, certificates: tuple[Certificate, ...]) -> None:
        """Note that these are durable."""
        if certificates:
            self._due = [certificate for certificate in self._due if certificate not in certificates]


def kept_above(log: Log) -> list[Certificate]:
    """Return the stored certificates of blocks in the log that have not been applied, rising."""
    found: list[Certificate] = []
    certificate = log.certificate(log.tip_height) if log.tip_height > log.certified else None
    while certificate is not None and certificate.height > log.certified:
        if log.header(certificate.height) == certificate.header:
            found.append(certificate)
        certificate = log.certificate(Height(certificate.height - 1))
    return found[::-1]
