"""Replays `mutations.md`: makes each edit in a copy of the packages and runs the tests that must notice it there.

    python -m tests.protocol.raft.replay_mutations [--only NAME ...] [--jobs 2] [--list]

Exit code 0 when all are caught; 1 when one survives, hangs, or does not apply; 2 when the tests fail without any edit,
so that nothing could be learned. The tree itself is never touched.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.protocol.raft.mutation_list import ROOT, Mutation, NotApplicable, load

_COPIED = ("protocol", "storage", "node", "simulations", "tests", "pyproject.toml")
_TIMEOUT_S = 180
_FAILED = re.compile(r"^(?:FAILED|ERROR) ([^\s\[]+)", re.MULTILINE)
_PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "--tb=no", "-rfE", "--no-header")
_TESTS_FAILED = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one mutation: `verdict` is "caught", "survived", "does not apply", "hung" or "broken"."""

    mutation: Mutation
    verdict: str
    detail: str
    seconds: float

    @property
    def is_caught(self) -> bool:
        """Whether every test that must notice did."""
        return self.verdict == "caught"


class Copy:
    """A copy of the packages in a temporary folder, with one edit at a time."""

    def __init__(self, folder: Path, source: Path = ROOT) -> None:
        """`source` is the tree, whose byte code stays behind, or another copy, whose comes along."""
        self.folder = folder
        ignore = shutil.ignore_patterns("__pycache__") if source == ROOT else None
        folder.mkdir()
        for name in _COPIED:
            if (source / name).is_dir():
                shutil.copytree(source / name, folder / name, ignore=ignore)
            else:
                shutil.copy2(source / name, folder / name)

    def run(self, tests: Sequence[str], *, cache: bool) -> subprocess.CompletedProcess[str]:
        """Run pytest on some tests. `cache`: leave byte code behind; never for an edit, which is soon undone."""
        # The copy is the working folder and so comes first on the path, before whatever is installed.
        settings = {"PYTHONDONTWRITEBYTECODE": "" if cache else "1", "PYTHONPATH": str(self.folder)}
        return subprocess.run(
            [sys.executable, *_PYTEST, *tests],
            cwd=self.folder,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )

    def is_imported(self) -> bool:
        """Return whether the tests here run against this copy and not against what is installed."""
        shown = subprocess.run(
            [sys.executable, "-c", "import protocol; print(protocol.__file__)"],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            check=True,
        )
        return Path(shown.stdout.strip()).is_relative_to(self.folder)

    @contextmanager
    def edited(self, mutation: Mutation) -> Iterator[None]:
        """Make one edit, and undo it in the end.

        Raises:
            NotApplicable: it does not fit.
        """
        path = self.folder / mutation.file
        if not path.is_file():
            raise NotApplicable(f"{mutation.name}: there is no {mutation.file}")
        before, status = path.read_text(encoding="utf-8"), path.stat()
        path.write_text(mutation.apply(before), encoding="utf-8")
        # Another time than the cached byte code's, also for an edit within its second and of its length.
        os.utime(path, (status.st_mtime + 10, status.st_mtime + 10))
        try:
            yield
        finally:
            path.write_text(before, encoding="utf-8")
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replay(mutation: Mutation, copy: Copy) -> Outcome:
    """Make one edit in a copy, run the tests that must notice it, and return what became of it."""
    start = time.monotonic()

    def outcome(verdict: str, detail: str = "") -> Outcome:
        return Outcome(mutation, verdict, detail, time.monotonic() - start)

    try:
        with copy.edited(mutation):
            run = copy.run(mutation.tests, cache=False)
    except NotApplicable as error:
        return outcome("does not apply", str(error))
    except subprocess.TimeoutExpired:
        return outcome("hung", f"no answer within {_TIMEOUT_S} s")
    if run.returncode not in (0, _TESTS_FAILED):
        return outcome("broken", run.stdout[-500:] + run.stderr[-500:])
    failed = set(_FAILED.findall(run.stdout))
    blind = [test for test in mutation.tests if test not in failed]
    return outcome("survived", "not noticed by " + ", ".join(blind)) if blind else outcome("caught")


def replay_all(mutations: Sequence[Mutation], jobs: int) -> Iterator[Outcome]:
    """Replay mutations in as many copies as there are jobs; yield what became of each as it is known.

    Raises:
        RuntimeError: the named tests do not pass as the code stands.
    """
    with tempfile.TemporaryDirectory(prefix="carechain-mutations-") as folder:
        first = Copy(Path(folder, "0"))
        _check_baseline(mutations, first)
        copies: queue.Queue[Copy] = queue.Queue()
        copies.put(first)
        for job in range(1, jobs):
            copies.put(Copy(Path(folder, str(job)), first.folder))

        def work(mutation: Mutation) -> Outcome:
            copy = copies.get()
            try:
                return replay(mutation, copy)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(jobs) as pool:
            for future in as_completed([pool.submit(work, mutation) for mutation in mutations]):
                yield future.result()


def _check_baseline(mutations: Sequence[Mutation], copy: Copy) -> None:
    if not copy.is_imported():
        raise RuntimeError("the copy is not what Python imports: what is installed hides it")
    run = copy.run(sorted({test for mutation in mutations for test in mutation.tests}), cache=True)
    if run.returncode != 0:
        raise RuntimeError(f"the tests fail without any edit:\n{run.stdout[-2000:]}{run.stderr[-500:]}")


def main() -> int:
    """Replay from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Replays tests/protocol/raft/mutations.md.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="replay these mutations alone")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    parser.add_argument("--list", action="store_true", help="name the mutations and do nothing")
    arguments = parser.parse_args()
    mutations = load()
    unknown = set(arguments.only or ()) - {mutation.name for mutation in mutations}
    if unknown:
        parser.error(f"no such mutation: {', '.join(sorted(unknown))}")
    chosen = [mutation for mutation in mutations if not arguments.only or mutation.name in arguments.only]
    if arguments.list:
        for mutation in chosen:
            print(f"{mutation.name:40} {mutation.file:36} {', '.join(map(str, mutation.scenarios))}")
        return 0
    start, bad = time.monotonic(), []
    try:
        for count, outcome in enumerate(replay_all(chosen, max(1, arguments.jobs)), 1):
            place = f"{count}/{len(chosen)}"
            print(
                f"{place:>8}  {outcome.verdict:14} {outcome.mutation.name} ({outcome.seconds:.1f} s)",
                flush=True,
            )
            if not outcome.is_caught:
                bad.append(outcome)
                print(f"          {outcome.detail}", flush=True)
    except RuntimeError as error:
        print(error)
        return 2
    caught = len(chosen) - len(bad)
    print(f"{caught} of {len(chosen)} mutations caught in {time.monotonic() - start:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
