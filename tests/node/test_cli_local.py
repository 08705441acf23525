"""The commands that need no daemon: init, genesis, version, run's refusals; and what holds for the whole program."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from node import config
from node.cli.main import main
from node.cli.run import first_fault
from node.home import Home
from node.identity import Identity, opened_keystore
from protocol.errors import Refused
from tests.node.web_services import Calls, serving

Run = Callable[..., tuple[int, str, str]]

ABSENT = ("recover",)
ABSENT_VERBS = {
    "consent": ("simulate",),
    "bench": ("read",),
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("CARECHAIN_HOME", "CARECHAIN_PASSPHRASE_FILE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return command


def make(run: Run, home: Path, name: str, *options: str) -> Path:
    code, _, error = run("init", "--name", name, "--home", home, "--no-passphrase", *options)
    assert (code, error) == (0, "")
    return home / "card.json"


def refused(outcome: tuple[int, str, str], code: int = 1) -> str:
    """Return the one sentence of a refusal, after checking that it is one and that standard output is empty."""
    assert outcome[:2] == (code, "")
    assert outcome[2].count("\n") == 1
    assert "Traceback" not in outcome[2]
    return outcome[2]


def test_init_makes_keys_settings_and_card(run: Run, tmp_path: Path) -> None:
    code, out, error = run(
        "init",
        "--name",
        "Clinic",
        "--kind",
        "clinic",
        "--role",
        "observer",
        "--home",
        tmp_path / "h",
        "--no-passphrase",
        "--json",
    )
    document, card = json.loads(out), json.loads((tmp_path / "h" / "card.json").read_text())
    assert (code, error) == (0, "")
    assert document == {
        "facility": "Clinic",
        "peer_id": card["peer_id"],
        "card": str(tmp_path / "h" / "card.json"),
        "recovery_key": str(tmp_path / "h" / "recovery.key"),
    }
    assert (card["kind"], card["role"], card["addresses"]) == ("clinic", "observer", [])
    assert config.load(tmp_path / "h" / "config.toml").listen == ("/ip4/0.0.0.0/tcp/0",)


def test_keys_open_with_the_passphrase_only(run: Run, tmp_path: Path) -> None:
    (tmp_path / "right").write_text("correct horse\n")
    code, *_ = run("init", "--name", "A", "--passphrase-file", tmp_path / "right", "--home", tmp_path / "h")
    home = Home(tmp_path / "h")
    with opened_keystore(home, "correct horse", os.urandom) as keystore:
        keys = Identity.load(keystore)
    assert code == 0
    assert json.loads(home.card.read_text())["node"] == keys.node_id.hex()
    with pytest.raises(Refused, match="wrong passphrase"), opened_keystore(home, "wrong", os.urandom):
        pass


def test_init_without_a_passphrase_or_a_terminal_ends_at_once_and_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as nothing:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdin", nothing)
        sentence = refused(run("init", "--name", "A", "--home", tmp_path / "h"))
    assert "--passphrase-file" in sentence
    assert list((tmp_path / "h").iterdir()) == []


@pytest.mark.parametrize("variable", ["CARECHAIN_PASSPHRASE_FILE", "CREDENTIALS_DIRECTORY"])
def test_the_passphrase_comes_from_the_environment(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    (tmp_path / "passphrase").write_text("secret")
    monkeypatch.setenv(
        variable, str(tmp_path if variable == "CREDENTIALS_DIRECTORY" else tmp_path / "passphrase")
    )
    assert run("init", "--name", "A", "--home", tmp_path / "h")[0] == 0
    with opened_keystore(Home(tmp_path / "h"), "secret", os.urandom) as keystore:
        assert Identity.load(keystore).node_id


def test_init_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    card = make(run, tmp_path / "h", "A").read_bytes()
    assert "not empty" in refused(run("init", "--name", "B", "--home", tmp_path / "h", "--no-passphrase"))
    assert (tmp_path / "h" / "card.json").read_bytes() == card


@pytest.mark.parametrize(
    "options",
    [
        ("--kind", "bank"),
        ("--role", "king"),
        ("--listen", "127.0.0.1:1"),
        ("--http", "x"),
        ("--name", " "),
        ("--peer", "b"),
    ],
)
def test_init_refuses_unusable_settings_before_it_makes_anything(
    run: Run, tmp_path: Path, options: tuple[str, str]
) -> None:
    refused(run("init", "--name", "A", "--no-passphrase", "--home", tmp_path / "h", *options))
    assert not (tmp_path / "h").exists()


def test_genesis_founds_a_network_and_warns_of_few_voters(run: Run, tmp_path: Path) -> None:
    cards = [make(run, tmp_path / name, name) for name in ("A", "B")]
    code, out, error = run("genesis", *cards, "-o", tmp_path / "genesis.json", "--json")
    document = json.loads(out)
    assert (code, "voters: 2" in error) == (0, True)
    assert document["network"] == json.loads((tmp_path / "genesis.json").read_text())["network"]
    assert {member["name"] for member in document["members"]} == {"A", "B"}


def test_genesis_refuses_two_cards_of_one_name_and_an_altered_card(run: Run, tmp_path: Path) -> None:
    first, second = make(run, tmp_path / "a", "A"), make(run, tmp_path / "b", "A")
    assert "one name" in refused(run("genesis", first, second, "-o", tmp_path / "g"))
    second.write_text(second.read_text().replace('"name": "A"', '"name": "B"'))
    assert "altered" in refused(run("genesis", first, second, "-o", tmp_path / "g"))
    assert not (tmp_path / "g").exists()


def test_run_wants_a_home_a_network_and_that_network_only(run: Run, tmp_path: Path) -> None:
    a, b, c = (make(run, tmp_path / name, name.upper()) for name in "abc")
    run("genesis", a, b, "-o", tmp_path / "ab.json")
    run("genesis", a, c, "-o", tmp_path / "ac.json")
    (tmp_path / "a" / "genesis.json").write_bytes((tmp_path / "ab.json").read_bytes())

    assert "no facility" in refused(run("run", "--home", tmp_path / "none"))
    assert "joined no network" in refused(run("run", "--home", tmp_path / "b"))
    assert "does not name this facility" in refused(
        run("run", "--home", tmp_path / "c", "--genesis", tmp_path / "ab.json")
    )
    assert "belongs to network" in refused(
        run("run", "--home", tmp_path / "a", "--genesis", tmp_path / "ac.json")
    )
    assert not (tmp_path / "c" / "genesis.json").exists()


def test_run_refuses_a_second_daemon_and_a_corrupt_configuration(run: Run, tmp_path: Path) -> None:
    make(run, tmp_path / "a", "A")
    home = Home(tmp_path / "a")
    with home.lock():
        assert "already running" in refused(run("run", "--home", home.path))
    home.config.write_text("name = ")
    assert "config.toml" in refused(run("run", "--home", home.path))


def test_run_names_a_wrong_passphrase(run: Run, tmp_path: Path) -> None:
    (tmp_path / "right").write_text("right")
    (tmp_path / "wrong").write_text("wrong")
    run("init", "--name", "A", "--home", tmp_path / "a", "--passphrase-file", tmp_path / "right")
    run("genesis", tmp_path / "a" / "card.json", "-o", tmp_path / "g.json")
    outcome = run(
        "run",
        "--home",
        tmp_path / "a",
        "--genesis",
        tmp_path / "g.json",
        "--passphrase-file",
        tmp_path / "wrong",
    )
    assert "wrong passphrase" in refused(outcome)


@pytest.mark.parametrize(
    "arguments", [("status",), ("member", "list"), ("record", "status", "x"), ("audit", "verify")]
)
def test_commands_say_that_no_daemon_runs(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    make(run, tmp_path / "a", "A")
    assert "no daemon is running" in refused(run(*arguments, "--home", tmp_path / "a", "--json"))
    assert "no facility" in refused(run(*arguments, "--home", tmp_path / "b"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("bogus",),
        ("record", "bogus"),
        ("genesis",),
        ("run", "--bogus"),
        ("run", "--rebuild", "all"),
        ("demo", "--facilities", "1"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert "--help" in refused(run(*arguments), code=2)


def test_home_and_json_are_taken_before_and_after_the_command(run: Run, tmp_path: Path) -> None:
    for arguments in (
        ("--home", tmp_path / "h", "member", "list"),
        ("member", "--home", tmp_path / "h", "list"),
        ("member", "list", "--home", tmp_path / "h"),
        ("--home", "/elsewhere", "member", "list", "--home", tmp_path / "h"),
    ):
        assert str(tmp_path / "h") in refused(run(*arguments))
    assert (
        json.loads(run("--json", "version")[1])["wire"]
        == json.loads(run("version", "--json")[1])["wire"]
        == 1
    )


def test_every_command_takes_home_and_json(run: Run) -> None:
    for arguments in _commands(run):
        _, help_text, _ = run(*arguments, "--help")
        assert "--home" in help_text, arguments
        assert "--json" in help_text, arguments


def test_what_does_not_exist_yet_is_absent_from_help(run: Run) -> None:
    assert not {name for name in ABSENT if (name,) in _commands(run)}
    for noun, verbs in ABSENT_VERBS.items():
        assert not {verb for verb in verbs if (noun, verb) in _commands(run)}


def _commands(run: Run) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for name in _listed(run("--help")[1]):
        verbs = _listed(run(name, "--help")[1])
        found |= {(name, verb) for verb in verbs} or {(name,)}
    return found


def _listed(help_text: str) -> list[str]:
    _, _, commands = help_text.partition("Commands:\n")
    return [line.split()[0] for line in commands.splitlines() if line.startswith("  ") and line[2] != " "]


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (
            "['--help']",
            "httpx trio libp2p starlette hypercorn plyvel nacl cryptography structlog msgpack rich",
        ),
        (
            "['record', 'add', '--help']",
            "httpx trio libp2p starlette hypercorn plyvel nacl cryptography structlog msgpack",
        ),
        (
            "['status', '--home', HOME]",
            "libp2p starlette hypercorn plyvel nacl cryptography structlog zeroconf",
        ),
    ],
)
def test_commands_load_only_what_they_need(tmp_path: Path, arguments: str, unwanted: str) -> None:
    with serving(Home(tmp_path), Calls()):
        program = (
            f"import sys; HOME = {str(tmp_path)!r}\nfrom node.cli.main import main\nmain({arguments})\n"
            f"print([name for name in {unwanted.split()} if name in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_module_is_the_same_program_and_bears_a_poor_locale() -> None:
    program = [sys.executable, "-P", "-m", "node", "genesis", "--bogus-é\udcff", "-o", "x"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "Traceback" not in done.stderr


def test_a_failed_nursery_tells_our_own_refusal_first() -> None:
    refusal = Refused("the port is in use")
    group = ExceptionGroup("", [ValueError("x"), ExceptionGroup("", [refusal])])
    assert first_fault(group) is refusal
    assert isinstance(first_fault(ExceptionGroup("", [KeyError("k")])), KeyError)
