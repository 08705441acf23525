"""Handing over on the command line: the wallet is on the disk before custody changes, and no wallet is ever overwritten.

    prepare ──► wallet file, durable ──► complete

What stood under the wallet's name is set aside first: it comes back on a refusal, and stays aside if it is a wallet,
because nobody can make that one again.
"""

import base64
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from node.cli.client import Client
from node.cli.output import Document, Output
from node.cli.wallet import read_wallet
from node.home import sync_directory, write_atomically
from protocol.errors import Forbidden, Refused

_WALLET_TAG = b"wallet-file"
_TAG_WITHIN = 32
"""A wallet begins with its tag; what follows is ciphertext (protocol/wallet.py)."""


@dataclass(frozen=True, slots=True)
class _Former:
    """The file that the wallet replaces, under another name until it is known what becomes of it. None when there was none."""

    output: Path
    aside: Path | None

    @classmethod
    def set_aside(cls, output: Path, wallet: bytes) -> "_Former":
        """Keep what is at `output`, unless it is this very wallet: then the command is being repeated."""
        if not output.is_file() or output.read_bytes() == wallet:
            return cls(output, None)
        aside = output.with_name(f"{output.name[:200]}.before-{secrets.token_hex(4)}")
        # A second name and not a new one: at every moment there is a file at `output`.
        os.link(output, aside)
        sync_directory(output.parent)
        return cls(output, aside)

    def restore(self) -> None:
        """Put it back: the wallet beside it is useless."""
        if self.aside is not None:
            self.aside.replace(self.output)
        else:
            self.output.unlink(missing_ok=True)

    def release(self, output: Output) -> None:
        """Remove it, unless it is a wallet."""
        if self.aside is None:
            return
        with self.aside.open("rb") as file:
            is_wallet = _WALLET_TAG in file.read(_TAG_WITHIN)
        if is_wallet:
            output.notice(f"{self.output} was a wallet before; that one is kept as {self.aside}")
        else:
            self.aside.unlink()


def hand_over(
    client: Client, output: Output, *, patient: str, wallet: Path, passphrase: str, grant: bool
) -> Document:
    """Write the wallet, complete the handover, and return its document.

    Raises:
        Refused, Forbidden: nothing changed, and the file that was there is there.
        NotFinal: under way; the wallet is written and must be kept.
    """
    sealed = base64.b64encode(passphrase.encode()).decode()
    prepared = client.post("/v1/patients/handover/prepare", patient=patient, passphrase=sealed)
    data = base64.b64decode(prepared["wallet"])
    if not data:
        _check_written(client, patient, wallet, sealed)
        done = client.post("/v1/patients/handover/complete", handover=prepared["handover"], grant=grant)
        return {**done, "wallet": str(wallet)}
    former = _Former.set_aside(wallet, data)
    # Persist before completing: the facility deletes its copy, and a wallet lost in between would be lost for good.
    write_atomically(wallet, data)
    try:
        done = client.post("/v1/patients/handover/complete", handover=prepared["handover"], grant=grant)
    except (Refused, Forbidden):
        former.restore()
        raise
    except BaseException:
        # Anything else may have come after the custody changed; without this file the patient would lose everything.
        former.release(output)
        output.notice(f"{wallet} is written; keep it, the handover may already be under way")
        raise
    former.release(output)
    return {**done, "wallet": str(wallet)}


def _check_written(client: Client, patient: str, wallet: Path, passphrase: str) -> None:
    """Check that a handover of before has left its wallet here: it cannot be made again."""
    if not wallet.is_file():
        raise Refused(
            "custody was handed over before, and the wallet was written then; nobody can make it again"
        )
    fields = {"wallet": base64.b64encode(read_wallet(wallet)).decode(), "wallet_passphrase": passphrase}
    client.post("/v1/consent/list", patient=patient, **fields)
