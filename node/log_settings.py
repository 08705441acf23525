"""The parts of config.toml about checkpoints: the witnesses that cosign ours, and the logs that this node is a witness of."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from protocol import limits
from protocol.checkpoint import KeyKind, NoteKey
from protocol.errors import Malformed, Refused
from protocol.log_witness import KnownLog

TEMPLATE = """
# Witnesses outside this network that cosign its checkpoints (C2SP tlog-witness); `key` is what their operator publishes.
# [[witness]]
# url = "https://witness.example.com/w1"
# key = "witness.example.com/w1+8d66cf3f+BA…"

# Be a witness for others: HOST:PORT of add-checkpoint, for this network's checkpoints and those of the logs named here.
# [log_witness]
# listen = "127.0.0.1:8090"
# [[log_witness.logs]]
# origin = "carechain/<id of another network>"
# keys = ["carechain/<id of another network>+5c21a0d4+AX…"]
"""


@dataclass(frozen=True, slots=True)
class OutsideWitness:
    """A witness that is brought our checkpoints. `url` is what /add-checkpoint is appended to."""

    url: str
    key: NoteKey


@dataclass(frozen=True, slots=True)
class LogWitnessSettings:
    """Where this node answers as a witness, `HOST:PORT`, and for which logs besides its own network's."""

    listen: str
    logs: tuple[KnownLog, ...] = ()


def render(witnesses: tuple[OutsideWitness, ...], log_witness: LogWitnessSettings | None) -> str:
    """Return the TOML of these settings, or how they are written where there are none."""
    if not witnesses and log_witness is None:
        return TEMPLATE
    lines = [
        line
        for witness in witnesses
        for line in (
            "",
            "[[witness]]",
            f"url = {json.dumps(witness.url, ensure_ascii=False)}",
            f"key = {json.dumps(witness.key.text, ensure_ascii=False)}",
        )
    ]
    if log_witness is not None:
        lines += ["", "[log_witness]", f"listen = {json.dumps(log_witness.listen)}"]
        for log in log_witness.logs:
            keys = json.dumps([key.text for key in log.keys], ensure_ascii=False)
            origin = json.dumps(log.origin, ensure_ascii=False)
            lines += ["[[log_witness.logs]]", f"origin = {origin}", f"keys = {keys}"]
    return "\n".join(lines) + "\n"


def parse_witnesses(value: object) -> tuple[OutsideWitness, ...]:
    """Return the witnesses that the tables `[[witness]]` name.

    Raises:
        Refused: one cannot be used; the sentence says why.
    """
    tables = _tables(value, "witness")
    witnesses = tuple(
        OutsideWitness(_url(table), _key(_text(table, "witness", "key"), KeyKind.COSIGNER))
        for table in tables
        if _known(table, "witness", {"url", "key"})
    )
    if len({witness.key for witness in witnesses}) != len(witnesses):
        raise Refused("config.toml names a witness twice; remove one of the two")
    return witnesses


def parse_log_witness(value: object) -> LogWitnessSettings | None:
    """Return what the table `[log_witness]` says; None without one.

    Raises:
        Refused: it cannot be used; the sentence says why.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise Refused("log_witness in config.toml is a table; write [log_witness] above its settings")
    _known(value, "log_witness", {"listen", "logs"})
    logs = tuple(map(_log, _tables(value.get("logs"), "log_witness.logs")))
    if len({log.origin for log in logs}) != len(logs):
        raise Refused("config.toml names a log of [log_witness] twice; put its keys into one list")
    return LogWitnessSettings(_text(value, "log_witness", "listen"), logs)


def _log(table: Mapping[str, Any]) -> KnownLog:
    _known(table, "log_witness.logs", {"origin", "keys"})
    origin, keys = _text(table, "log_witness.logs", "origin"), table.get("keys")
    if not isinstance(keys, list) or not 1 <= len(keys) <= limits.MEMBERS_MAX:
        raise Refused(
            f"a log in config.toml has a list of 1 to {limits.MEMBERS_MAX} keys; add what its operator publishes"
        )
    if not origin or not origin.isprintable():
        raise Refused("the origin of a log in config.toml is the first line of its checkpoints; correct it")
    return KnownLog(origin, tuple(_key(key, KeyKind.LOG) for key in keys))


def _url(table: Mapping[str, Any]) -> str:
    url = _text(table, "witness", "url")
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_usable = False
    if not is_usable or not url.isprintable() or any(mark in url for mark in " ?#@"):
        raise Refused(
            "the url of a witness in config.toml is http:// or https:// with a host, and no query; correct it"
        )
    return url.rstrip("/")


def _key(text: object, kind: KeyKind) -> NoteKey:
    try:
        key = NoteKey.parse(text) if isinstance(text, str) else None
    except Malformed as fault:
        raise Refused(
            f"a key in config.toml cannot be used ({fault}); copy it again as its operator publishes it"
        ) from None
    if key is None or key.kind is not kind:
        what = (
            "a witness's (its part after the last + begins with B)" if kind is KeyKind.COSIGNER else "a log's"
        )
        raise Refused(f"a key in config.toml is not {what}; copy it again as its operator publishes it")
    return key


def _tables(value: object, name: str) -> tuple[Mapping[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise Refused(f"{name} in config.toml is a list of tables; write [[{name}]] above each")
    if len(value) > limits.LOG_WITNESSES_MAX:
        raise Refused(f"config.toml has more than {limits.LOG_WITNESSES_MAX} tables [[{name}]]; remove some")
    return tuple(value)


def _text(table: Mapping[str, Any], name: str, key: str) -> str:
    value = table.get(key)
    if not isinstance(value, str):
        raise Refused(f"[{name}] in config.toml has no text '{key}'; add it")
    return value


def _known(table: Mapping[str, Any], name: str, keys: set[str]) -> bool:
    unknown = sorted(set(table) - keys)
    if unknown:
        raise Refused(
            f"[{name}] in config.toml has an unknown setting '{unknown[0][:64]}'; known are {', '.join(sorted(keys))}"
        )
    return True
