"""The tables of config.toml about checkpoints: read back as written, and refused in one sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import config
from node.config import Config
from node.log_settings import TEMPLATE, LogWitnessSettings, OutsideWitness
from protocol.checkpoint import KeyKind, NoteKey
from protocol.errors import Refused
from protocol.identifiers import PublicKey
from protocol.log_witness import KnownLog
from tests.protocol.chain import key

NAMES = st.text(min_size=1, max_size=20).filter(
    lambda text: text.isprintable() and not any(c.isspace() or c == "+" for c in text)
)
WITNESS = NoteKey("witness.example/w", KeyKind.COSIGNER, PublicKey(key("w").public))
LOG = NoteKey("log.example/one", KeyKind.LOG, PublicKey(key("l").public))


@given(names=st.lists(NAMES, max_size=3, unique=True), origins=st.lists(NAMES, max_size=3, unique=True))
def test_what_is_written_is_read_back(names: list[str], origins: list[str]) -> None:
    witnesses = tuple(
        OutsideWitness("https://w.example:8443/a", NoteKey(name, KeyKind.COSIGNER, WITNESS.public))
        for name in names
    )
    logs = tuple(KnownLog(origin, (NoteKey(origin, KeyKind.LOG, LOG.public), LOG)) for origin in origins)
    for log_witness in (None, LogWitnessSettings("[::1]:80", logs)):
        written = Config("A", witness=witnesses, log_witness=log_witness)
        assert config.parse(config.render(written)) == written


def test_what_init_writes_shows_how() -> None:
    text = config.render(Config("A"))
    assert text.endswith(TEMPLATE)
    shown = text.replace("\n# [", "\n[").replace("\n# url", "\nurl").replace("\n# key", "\nkey")
    shown = shown.replace("\n# listen", "\nlisten").replace("\n# origin", "\norigin")
    with pytest.raises(Refused, match=r"a key in config\.toml cannot be used"):  # its examples are no keys
        config.parse(shown)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("witness = 3", "list of tables"),
        ("[witness]\nurl = 'https://a'", "list of tables"),
        ("[[witness]]\nurl = 'https://a'", "no text 'key'"),
        (f"[[witness]]\nkey = '{WITNESS.text}'", "no text 'url'"),
        (f"[[witness]]\nurl = 'ftp://a'\nkey = '{WITNESS.text}'", "http"),
        (f"[[witness]]\nurl = 'https://'\nkey = '{WITNESS.text}'", "http"),
        (f"[[witness]]\nurl = 'https://u:p@a'\nkey = '{WITNESS.text}'", "http"),
        (f"[[witness]]\nurl = 'https://a/?q'\nkey = '{WITNESS.text}'", "http"),
        (f"[[witness]]\nurl = 'https://[a'\nkey = '{WITNESS.text}'", "http"),
        (f"[[witness]]\nurl = 'https://a:99999'\nkey = '{WITNESS.text}'", "http"),
        (f"[[witness]]\nurl = 'https://a'\nkey = '{LOG.text}'", "not a witness's"),
        (f"[[witness]]\nurl = 'https://a'\nkey = '{WITNESS.text[:-1]}'", "cannot be used"),
        (f"[[witness]]\nurl = 'https://a'\nkey = '{WITNESS.text}'\nname = 'x'", "unknown setting 'name'"),
        (f"[[witness]]\nurl = 'https://a'\nkey = '{WITNESS.text}'\n" * 2, "twice"),
        (f"[[witness]]\nurl = 'https://a'\nkey = '{WITNESS.text}'\n" * 17, "more than 16"),
        ("log_witness = 3", "is a table"),
        ("[log_witness]", "no text 'listen'"),
        ("[log_witness]\nlisten = '8090'", "HOST:PORT"),
        ("[log_witness]\nlisten = '127.0.0.1:1'\nlogs = [{}]", "no text 'origin'"),
        ("[log_witness]\nlisten = '127.0.0.1:1'\nlogs = [{origin = 'a', keys = []}]", "list of 1 to"),
        ("[log_witness]\nlisten = '127.0.0.1:1'\nlogs = [{origin = 'a', keys = [3]}]", "not a log's"),
        (f"[log_witness]\nlisten = '127.0.0.1:1'\nlogs = [{{origin = 'a', keys = ['{WITNESS.text}']}}]", "not a log's"),
        (f"[log_witness]\nlisten = '127.0.0.1:1'\nlogs = [{{origin = '', keys = ['{LOG.text}']}}]", "the origin"),
        (f"[log_witness]\nlisten = '127.0.0.1:1'\nlogs = [{{origin = 'a', keys = ['{LOG.text}']}}, {{origin = 'a', keys = ['{LOG.text}']}}]", "twice"),
        ("[log_witness]\nlisten = '127.0.0.1:1'\nport = 3", "unknown setting 'port'"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence.replace("[", r"\[")):
        config.parse(f"name = 'A'\n{text}")
