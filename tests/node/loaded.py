"""The program, loaded: what `forked` imports once, and what each process forked from it runs.

`typer` and `httpx` load most of themselves at the first use; so one command runs here, before anything is forked.
"""

import contextlib
import gc
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence

from node.cli.main import main

for _module in (
    "anyio._backends._trio",
    "httpcore",
    "httpx",
    "node.cli.audit",
    "node.daemon",
    "rich.console",
):
    importlib.import_module(_module)
with contextlib.redirect_stdout(io.StringIO()):
    main(("version",))
# Forked processes share these objects with their parent, unless each collection touches them all.
gc.freeze()


def serve(arguments: Sequence[str], output: str, errors: str, environment: Mapping[str, str]) -> None:
    """Be the program with these arguments, in a session of its own, with its streams in files; end with its exit code."""
    os.setsid()
    for path, descriptor in ((output, 1), (errors, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # it stands in the environment
    sys.exit(main(arguments))
