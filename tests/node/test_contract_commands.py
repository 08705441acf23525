"""The contract of the command line: which commands and options exist, and which do not yet."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.node.daemons import carechain

pytestmark = pytest.mark.slow

COMMANDS = {
    "": {"init", "genesis", "run", "status", "member", "storage", "demo", "bench", "version", "patient", "record", "consent", "audit", "backup", "restore", "verify", "recover", "foreign"},
    "member": {"list", "propose", "vote", "withdraw", "leave", "rotate", "ticket"},
    "recover": {"collect", "propose", "sign", "apply", "cancel"},
    "foreign": {"add", "update", "confirm", "status"},
    "storage": {"status", "scrub", "repair", "reclaim"},
    "bench": {"consensus", "storage", "catchup", "verify"},
    "patient": {"register", "list", "handover"},
    "record": {"add", "list", "status", "get", "export", "erase"},
    "consent": {"grant", "list", "revoke"},
    "audit": {"log", "verify", "checkpoint", "receipt", "update"},
}  # fmt: skip
OPTIONS = {
    "init": {"--name", "--kind", "--role", "--listen", "--announce", "--peer", "--http", "--no-passphrase", "--passphrase-file", "--recovery-key"},
    "genesis": {"-o"},
    "run": {"--genesis", "--rebuild", "--log-level", "--log-format", "--passphrase-file"},
    "backup": {"-o", "--payloads", "--new-recovery-key", "--passphrase-file"},
    "restore": {"--recovery-key", "--new-passphrase-file"},
    "demo": {"--keep", "--facilities"},
    "bench consensus": {"--minutes", "--disk-delay", "--compare"},
    "bench storage": {"--minutes", "--fill", "--compare"},
    "bench catchup": {"--fill", "--compare"},
    "storage scrub": {"--rate"},
    "patient register": {"--from", "--identifier", "--birth-date", "--name"},
    "patient handover": {"-o", "--no-grant", "--wallet-passphrase-file"},
    "record add": {"--patient", "--category", "--media-type", "--force"},
    "record list": {"--patient"},
    "record get": {"-o", "--purpose", "--user"},
    "record export": {"--patient", "-o"},
    "record erase": {"--only", "--yes", "--wallet", "--wallet-passphrase-file"},
    "consent grant": {"--patient", "--to", "--category", "--purpose", "--expires", "--write", "--wallet", "--wallet-passphrase-file"},
    "consent list": {"--patient", "--wallet", "--wallet-passphrase-file"},
    "consent revoke": {"--wallet", "--wallet-passphrase-file"},
    "audit log": {"--patient", "--wallet", "--wallet-passphrase-file"},
    "audit verify": {"--full"},
}  # fmt: skip
ABSENT = ("bench read", "consent simulate")


def help_of(command: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "node", *command.split(), "--help"], capture_output=True, check=False, text=True
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("noun", sorted(COMMANDS))
def test_exactly_the_commands_of_this_issue_exist(noun: str) -> None:
    code, text = help_of(noun)
    listed = text[text.index("Commands:") :].splitlines()[1:]

    assert code == 0
    assert {line.split()[0] for line in listed if re.match(r"  \w", line)} == COMMANDS[noun]


@pytest.mark.parametrize("command", sorted(OPTIONS))
def test_a_command_has_the_options_of_the_contract(command: str) -> None:
    code, text = help_of(command)
    found = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text[text.index("Options:") :]))

    assert code == 0
    assert OPTIONS[command] | {"--home", "--json", "--help"} <= found


@pytest.mark.parametrize("command", ABSENT)
def test_a_command_of_a_later_issue_is_wrong_usage_and_no_stub(command: str, tmp_path: Path) -> None:
    ran = carechain(*command.split(), home=tmp_path)

    assert ran.code == 2
    assert "--help" in ran.said


def test_version_names_program_wire_and_store() -> None:
    document = carechain("version").document

    assert document is not None
    assert isinstance(document["version"], str)
    assert len(document) >= 3
