"""What every command has in common: `--home`, `--json`, and from them the home, the output and the passphrase."""

import getpass
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from node.cli.output import Output
from node.home import Home
from protocol.errors import Refused

PASSPHRASE_BYTES_MAX = 4096


def _home_or_inherited(context: typer.Context, value: Path | None) -> Path | None:
    """`carechain --home X status` and `carechain status --home X` are one; the nearer option wins."""
    return value if value is not None or context.parent is None else context.parent.params.get("home")


def _json_or_inherited(context: typer.Context, value: bool) -> bool:
    return value or (context.parent is not None and bool(context.parent.params.get("as_json")))


HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="DIR",
        callback=_home_or_inherited,
        help="The facility's home directory [default: $CARECHAIN_HOME, else ~/.carechain].",
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", callback=_json_or_inherited, help="Print one JSON document on standard output."),
]
PassphraseFileOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Read the passphrase from this file [default: $CARECHAIN_PASSPHRASE_FILE].",
    ),
]


def noun(name: str, help_text: str) -> typer.Typer:
    """Return the group of one noun's commands; it takes --home and --json for all of them."""
    app = typer.Typer(
        name=name, help=help_text, no_args_is_help=True, add_completion=False, rich_markup_mode=None
    )

    @app.callback()
    def options(home: HomeOption = None, as_json: JsonOption = False) -> None:
        """Take the options that every command shares; the commands read them from here."""

    options.__doc__ = help_text
    return app


@dataclass(frozen=True, slots=True)
class Session:
    """One run of one command."""

    home: Home
    output: Output

    @staticmethod
    def start(home: Path | None, as_json: bool) -> "Session":
        """Return the session of the given options."""
        return Session(Home.locate(home), Output(as_json))


def find_passphrase(given: Path | None, *, new: bool) -> str:
    """Return the passphrase from `--passphrase-file`, the environment, systemd's credentials, or a prompt.

    A new one is asked for twice.

    Raises:
        Refused: none of these, an unreadable or empty file, or two different answers.
    """
    file = given or _environment_file()
    if file is not None:
        return read_passphrase(file)
    if not sys.stdin.isatty():
        raise Refused(
            "no passphrase is given; name its file with --passphrase-file or $CARECHAIN_PASSPHRASE_FILE"
        )
    try:
        passphrase = getpass.getpass("Passphrase: ")
        if new and passphrase != getpass.getpass("The same again: "):
            raise Refused("the two passphrases differ; start again")
    except EOFError:
        raise Refused("no passphrase was typed; start again") from None
    if not passphrase:
        raise Refused("the passphrase is empty; choose one")
    return passphrase


def read_passphrase(file: Path) -> str:
    """Return the passphrase in a file, without the line break at its end.

    Raises:
        Refused: the file cannot be read, or holds no passphrase.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(PASSPHRASE_BYTES_MAX + 1)
        text = data.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise Refused(f"the passphrase file {file} cannot be read ({error.strerror}); name another") from None
    except UnicodeDecodeError:
        raise Refused(f"the passphrase file {file} is not text; name another") from None
    if not text or len(data) > PASSPHRASE_BYTES_MAX:
        raise Refused(
            f"the passphrase file {file} is empty or over {PASSPHRASE_BYTES_MAX} bytes; put one passphrase into it"
        )
    return text


def _environment_file() -> Path | None:
    named = os.environ.get("CARECHAIN_PASSPHRASE_FILE")
    if named:
        return Path(named)
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials:
        sealed = Path(credentials) / "passphrase"
        return sealed if sealed.exists() else None
    return None
