"""A patient's wallet on the command line: `--wallet FILE --wallet-passphrase-file FILE`."""

import base64
from pathlib import Path
from typing import Annotated

import typer

from node.cli.session import read_passphrase
from protocol.errors import Refused

WALLET_BYTES_MAX = 1024 * 1024
"""A wallet holds keys, a few KiB; anything larger is another file."""

WalletOption = Annotated[
    Path | None,
    typer.Option(
        "--wallet",
        metavar="FILE",
        help="Sign with the patient's wallet instead of this facility's custody key.",
    ),
]
WalletPassphraseOption = Annotated[
    Path | None,
    typer.Option("--wallet-passphrase-file", metavar="FILE", help="Where the wallet's passphrase stands."),
]


def wallet_fields(wallet: Path | None, passphrase_file: Path | None) -> dict[str, str]:
    """Return the fields that carry a wallet to the daemon, for this one call; none without a wallet.

    Raises:
        Refused: one option without the other, or a file that cannot be read.
    """
    if wallet is None and passphrase_file is None:
        return {}
    if wallet is None or passphrase_file is None:
        raise Refused(
            "a wallet and its passphrase go together; give both --wallet and --wallet-passphrase-file"
        )
    return {
        "wallet": base64.b64encode(read_wallet(wallet)).decode(),
        "wallet_passphrase": base64.b64encode(read_passphrase(passphrase_file).encode()).decode(),
    }


def read_wallet(wallet: Path) -> bytes:
    """Return the sealed bytes of a wallet file.

    Raises:
        Refused: it cannot be read, or is of no size that a wallet has.
    """
    try:
        with wallet.open("rb") as file:
            data = file.read(WALLET_BYTES_MAX + 1)
    except OSError as error:
        raise Refused(f"the wallet {wallet} cannot be read ({error.strerror}); name another file") from None
    if not data or len(data) > WALLET_BYTES_MAX:
        raise Refused(f"{wallet} is not a wallet; name the file that patient handover wrote")
    return data
