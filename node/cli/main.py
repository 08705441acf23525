"""The program `carechain`: all commands, and the one place where an error becomes a sentence and an exit code.

Loading this module loads no network, database or key code; each command imports what it needs when it runs.
"""

import io
import os
import sys
import traceback
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from node.cli import (
    audit,
    backup,
    bench,
    consent,
    demo,
    foreign,
    genesis,
    init,
    member,
    patient,
    record,
    recover,
    run,
    status,
    storage,
    verify,
    version,
)
from node.cli.output import printable
from node.cli.session import HomeOption, JsonOption
from protocol.errors import CarechainError, NotFinal

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_QUEUED = 3

app = typer.Typer(
    name="carechain",
    help="Share health records between facilities and leave a certified trace of every access.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def options(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Share health records between facilities and leave a certified trace of every access."""


app.command("init")(init.init)
app.command("genesis")(genesis.genesis)
app.command("run")(run.run)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.command("status")(status.status)
app.command("demo")(demo.demo)
app.command("verify")(verify.verify)
app.command("version")(version.version)
for _noun in (
    member.app,
    recover.app,
    storage.app,
    patient.app,
    record.app,
    consent.app,
    audit.app,
    foreign.app,
    bench.app,
):
    app.add_typer(_noun)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 refused or failed, 2 wrong usage, 3 queued but not final."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a name's letters shows question marks; it does not end the command.
            stream.reconfigure(errors="replace")
    try:
        code = app(
            list(sys.argv[1:] if arguments is None else arguments),
            prog_name="carechain",
            standalone_mode=False,
        )
        sys.stdout.flush()
    except NotFinal as queued:
        return _fail(str(queued), EXIT_QUEUED)
    except CarechainError as refusal:
        return _fail(str(refusal), EXIT_FAILED)
    except TyperException as misuse:
        return _misuse(misuse)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted; repeat the command to find out what was done", EXIT_FAILED)
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        return _fail(
            f"the system refused ({error.strerror or type(error).__name__}); repair that and repeat",
            EXIT_FAILED,
        )
    except Exception as error:  # noqa: BLE001  (the last line of defence: no traceback reaches a user)
        return _fail(
            f"internal error ({type(error).__name__} at {_place(error)}); please report it", EXIT_FAILED
        )
    # Commands return nothing; a number comes from typer.Exit, 130 where typer has caught Ctrl-C.
    if code == 130:
        return _fail("interrupted; repeat the command to find out what was done", EXIT_FAILED)
    return code if isinstance(code, int) else 0


def _misuse(misuse: TyperException) -> int:
    context = getattr(misuse, "ctx", None)
    if type(misuse).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(f"{misuse.format_message()}\n")
        return EXIT_USAGE
    command = context.command_path if context is not None else "carechain"
    return _fail(f"{misuse.format_message().rstrip('.')}; see {command} --help", EXIT_USAGE)


def _fail(sentence: str, code: int) -> int:
    sys.stderr.write(f"{printable(' '.join(sentence.split()))}\n")
    sys.stderr.flush()
    return code


def _place(error: BaseException) -> str:
    """Return file and line where an error was raised; its message may hold anything, so it is not shown."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "unknown"  # noqa: PTH119
