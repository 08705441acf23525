"""The house rules that a machine can check (ARCHITECTURE.md, "The law of imports")."""

import ast
import functools
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("node", "protocol", "simulations", "storage")
LINES_MAX = 400
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}

# Third party -> the only modules that may import it.
ROOMS = {
    "msgpack": {"protocol/codec.py"},
    # determinism.py patches both out of a simulation: fake signatures for speed, no randomness from outside.
    "nacl": {"protocol/signing.py", "protocol/passphrase.py", "simulations/determinism.py"},
    "cryptography": {"protocol/sealing.py", "protocol/hpke.py", "simulations/determinism.py", "node/bench/"},
    "plyvel": {"storage/leveldb.py", "storage/engine_errors.py"},
    "libp2p": {
        "node/libp2p_transport.py",
        "node/libp2p_kit.py",
        "node/handshakes.py",
        "node/gossip_limits.py",
        "node/noise_session.py",
        "node/yamux.py",
        "node/yamux_stream.py",
    },
    "multiaddr": {"node/libp2p_transport.py", "node/libp2p_kit.py", "node/endpoints.py"},
    "zeroconf": {"node/discovery.py"},
    "prometheus_client": {"node/telemetry.py"},
    "httpx": {"node/cli/client.py", "node/http_client.py"},
    "starlette": {"node/web/"},
    "hypercorn": {"node/web/"},
    "typer": {"node/cli/"},
    "rich": {"node/cli/"},
}
PURE_MAY_NOT = {
    "trio",
    "os",
    "socket",
    "time",
    "random",
    "secrets",
    "threading",
    "asyncio",
    "pathlib",
    "subprocess",
}


@dataclass(frozen=True)
class Source:
    """What is asked of a module here. Read once: there are hundreds, and rules for each library."""

    lines: int
    docstring: str | None
    imported: frozenset[str]


@functools.cache
def sources(*packages: str) -> Mapping[str, Source]:
    found = {}
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text()
            tree = ast.parse(text)
            found[path.relative_to(ROOT).as_posix()] = Source(
                len(text.splitlines()), ast.get_docstring(tree), frozenset(imported(tree))
            )
    return found


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("library", sorted(ROOMS))
def test_each_library_is_touched_in_its_room_only(library: str) -> None:
    rooms = ROOMS[library]
    guests = {name for name, source in sources(*PACKAGES).items() if library in source.imported}

    strangers = {
        name
        for name in guests
        if not any(name == room or (room.endswith("/") and name.startswith(room)) for room in rooms)
    }

    assert not strangers
    assert guests


def test_protocol_is_pure() -> None:
    offenders = {name: source.imported & PURE_MAY_NOT for name, source in sources("protocol").items()}

    assert not {name: found for name, found in offenders.items() if found}


def test_no_file_has_two_nouns_too_many() -> None:
    long = {name: source.lines for name, source in sources(*PACKAGES).items() if source.lines > LINES_MAX}

    assert not long


def test_no_module_is_named_for_nothing() -> None:
    assert not [name for name in sources(*PACKAGES) if Path(name).stem in BANNED_NAMES]


def test_every_module_says_what_it_is() -> None:
    assert not [name for name, source in sources(*PACKAGES).items() if not source.docstring]


def test_commands_do_not_load_the_network_on_the_way_to_help() -> None:
    probe = "import sys, node.cli.main; print(sorted({'libp2p', 'trio', 'plyvel', 'hypercorn'} & set(sys.modules)))"

    answer = subprocess.run([sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_wheel_holds_the_four_packages_and_nothing_else(tmp_path: Path) -> None:
    # From a copy: the build leaves a folder `build` beside what it builds, and would take in what an earlier one left.
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    )
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(tree),
    ]
    subprocess.run(build, check=True, capture_output=True)

    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        top = {name.split("/")[0] for name in wheel.namelist()}

    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)
