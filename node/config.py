"""HOME/config.toml as one frozen value: what a facility is called, what it does and where it listens.

The file is written once by `init` and edited by hand afterwards; a file that cannot be taken whole is refused in one
sentence, never half used.
"""

import ipaddress
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from node import log_settings
from node.log_settings import LogWitnessSettings, OutsideWitness
from protocol import limits
from protocol.errors import Refused
from protocol.identifiers import node_of_peer_id

Kind = Literal["hospital", "clinic", "lab", "insurer", "regulator", "patient"]
Role = Literal["voter", "witness", "observer"]
History = Literal["full", "sampled"]

LISTEN_DEFAULT = ("/ip4/0.0.0.0/tcp/0",)
NAME_CHARACTERS_MAX = 64
ADDRESSES_MAX = 16
SNAPSHOT_BLOCKS_MAX = 1_000_000
CONFIG_BYTES_MAX = 64 * 1024
"""A configuration is a few hundred bytes; a larger file is not one."""

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*\.?")


@dataclass(frozen=True, slots=True)
class Config:
    """A facility's settings.

    `listen`, `announce` and `peers` are multiaddrs (`/ip4/…/tcp/…`); `announce` replaces what the listeners show to
    others, `peers` are dialled besides what discovery finds; `http` is `HOST:PORT` of /healthz, /metrics and /checkpoint, or
    None. Each `witness` is brought our checkpoints; with `log_witness` this node is a witness itself (`node.log_settings`).
    `history` says how many signatures of blocks that a quorum has confirmed are verified again (`node.verification`).
    `snapshot_blocks` is the grid of state snapshots (`protocol.snapshot`): the same for the whole network, so that it is only
    written into the file by who tries out snapshots with few blocks, in the file of every member.
    `storage_quota_bytes` bounds the ciphertext of records that is stored here, 0 for as much as the disk takes.
    """

    name: str
    kind: Kind = "hospital"
    role: Role = "voter"
    listen: tuple[str, ...] = LISTEN_DEFAULT
    announce: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    http: str | None = None
    history: History = "full"
    snapshot_blocks: int = limits.SNAPSHOT_UNIT_BLOCKS
    storage_quota_bytes: int = 0
    witness: tuple[OutsideWitness, ...] = ()
    log_witness: LogWitnessSettings | None = None

    def check(self) -> None:
        """Check every field.

        Raises:
            Refused: the first field that cannot be used, with what would be right.
        """
        if (
            not 1 <= len(self.name) <= NAME_CHARACTERS_MAX
            or self.name != self.name.strip()
            or not self.name.isprintable()
        ):
            raise Refused(
                f"a facility's name has 1 to {NAME_CHARACTERS_MAX} printable characters; choose another --name"
            )
        if self.kind not in get_args(Kind):
            raise Refused(f"the kind '{self.kind}' is unknown; choose one of {', '.join(get_args(Kind))}")
        if self.role not in get_args(Role):
            raise Refused(f"the role '{self.role}' is unknown; choose one of {', '.join(get_args(Role))}")
        if self.history not in get_args(History):
            raise Refused(
                f"the history '{self.history}' is unknown; choose one of {', '.join(get_args(History))}"
            )
        if not 1 <= self.snapshot_blocks <= SNAPSHOT_BLOCKS_MAX:
            raise Refused(f"snapshot_blocks is a number from 1 to {SNAPSHOT_BLOCKS_MAX}; correct it")
        if self.storage_quota_bytes < 0:
            raise Refused("storage_quota_bytes is a number of bytes, or 0 for no quota; correct it")
        if not self.listen:
            raise Refused(f"a facility listens on at least one address, for example {LISTEN_DEFAULT[0]}")
        for addresses in (self.listen, self.announce, self.peers):
            if len(addresses) > ADDRESSES_MAX:
                raise Refused(
                    f"{len(addresses)} addresses are given where at most {ADDRESSES_MAX} are allowed"
                )
            for address in addresses:
                check_multiaddr(address)
        if self.http is not None:
            host_and_port(self.http)
        if self.log_witness is not None:
            host_and_port(self.log_witness.listen)

    def card_addresses(self) -> tuple[str, ...]:
        """Return the addresses that others can dial as they stand: announced ones, else listeners with a real host and port."""
        if self.announce:
            return self.announce
        return tuple(address for address in self.listen if not _is_chosen_by_system(address))


def check_multiaddr(text: str) -> None:
    """Check that `text` is a TCP multiaddr, with or without /p2p/PEER at its end.

    Raises:
        Refused: it is not.
    """
    refusal = Refused(
        f"'{text[:256]}' is not a TCP multiaddr such as /ip4/192.0.2.1/tcp/4001; correct the address"
    )
    parts = text.split("/")
    if len(parts) not in (5, 7) or parts[0] or parts[3] != "tcp" or len(text) > 256:
        raise refusal
    try:
        match parts[1]:
            case "ip4":
                ipaddress.IPv4Address(parts[2])
            case "ip6":
                ipaddress.IPv6Address(parts[2])
            case "dns" | "dns4" | "dns6":
                if not _HOST_NAME.fullmatch(parts[2]):
                    raise refusal
            case _:
                raise refusal
        if not _is_port(parts[4]):
            raise refusal
        if len(parts) == 7:
            if parts[5] != "p2p":
                raise refusal
            node_of_peer_id(parts[6])
    except ValueError:
        raise refusal from None


def host_and_port(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT` (`[HOST]:PORT` for IPv6).

    Raises:
        Refused: the text is neither.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not _is_port(port):
        raise Refused(f"'{text[:256]}' is not HOST:PORT such as 127.0.0.1:8080; correct the address for HTTP")
    return host, int(port)


def render(config: Config) -> str:
    """Return the TOML text of a configuration."""
    lines = [
        "# A carechain facility. Edit and start the daemon again; name, kind and role stand in the signed card.",
        f"name = {_toml(config.name)}",
        f"kind = {_toml(config.kind)}",
        f"role = {_toml(config.role)}",
        "",
        "# Where other facilities connect (multiaddrs); port 0 lets the system choose.",
        f"listen = {_toml(config.listen)}",
        "# What to tell others instead, behind a router or a name.",
        f"announce = {_toml(config.announce)}",
        "# Facilities to dial besides those that discovery finds.",
        f"peers = {_toml(config.peers)}",
        "",
        "# HOST:PORT of /healthz, /metrics and /checkpoint.",
        f"http = {_toml(config.http)}" if config.http else '# http = "127.0.0.1:8080"',
        "",
        "# Signatures verified again in blocks that a quorum has confirmed: full, or sampled (one in sixteen, catches up faster).",
        f"history = {_toml(config.history)}",
        "",
        "# Bytes of records, sealed, that are stored here at most; 0 for as much as the disk takes.",
        f"storage_quota_bytes = {config.storage_quota_bytes}",
    ]
    if config.snapshot_blocks != limits.SNAPSHOT_UNIT_BLOCKS:
        lines.append(f"snapshot_blocks = {config.snapshot_blocks}")
    return "\n".join(lines) + "\n" + log_settings.render(config.witness, config.log_witness)


def parse(text: str) -> Config:
    """Return the configuration that TOML `text` spells.

    Raises:
        Refused: not TOML, an unknown or missing setting, or a value that cannot be used.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Refused(
            f"config.toml is not valid TOML ({str(error)[:200]}); correct it or restore it from a copy"
        ) from None
    known = {field.name for field in fields(Config)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise Refused(
            f"config.toml has an unknown setting '{unknown[0][:64]}'; known are {', '.join(sorted(known))}"
        )
    http = _text(table, "http", "")
    config = Config(
        name=_text(table, "name"),
        # The literal types hold after check(), which refuses every other text.
        kind=_text(table, "kind", "hospital"),  # type: ignore[arg-type]
        role=_text(table, "role", "voter"),  # type: ignore[arg-type]
        listen=_texts(table, "listen", LISTEN_DEFAULT),
        announce=_texts(table, "announce"),
        peers=_texts(table, "peers"),
        http=http or None,
        history=_text(table, "history", "full"),  # type: ignore[arg-type]
        snapshot_blocks=_number(table, "snapshot_blocks", limits.SNAPSHOT_UNIT_BLOCKS),
        storage_quota_bytes=_number(table, "storage_quota_bytes", 0),
        witness=log_settings.parse_witnesses(table.get("witness")),
        log_witness=log_settings.parse_log_witness(table.get("log_witness")),
    )
    try:
        config.check()
    except Refused as refusal:
        raise Refused(f"config.toml cannot be used: {refusal}") from None
    return config


def load(path: Path) -> Config:
    """Return the configuration in a file.

    Raises:
        Refused: the file is missing, unreadable, too large, or its content cannot be used.
    """
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise Refused(f"config.toml cannot be read ({error.strerror}); restore it from a copy") from None
    if len(data) > CONFIG_BYTES_MAX:
        raise Refused(f"config.toml is over {CONFIG_BYTES_MAX} bytes; restore it from a copy")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Refused("config.toml is not UTF-8 text; restore it from a copy") from None
    return parse(text)


def _text(table: Mapping[str, object], key: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if value is None:
        raise Refused(f"config.toml has no setting '{key}'; add it or restore the file from a copy")
    if not isinstance(value, str):
        raise Refused(f"the setting '{key}' in config.toml is not a text; correct it")
    return value


def _number(table: Mapping[str, object], key: str, default: int) -> int:
    value = table.get(key, default)
    if type(value) is not int:
        raise Refused(f"the setting '{key}' in config.toml is not a number; correct it")
    return value


def _texts(table: Mapping[str, object], key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    value = table.get(key)
    if value is None:
        return default
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Refused(f"the setting '{key}' in config.toml is not a list of texts; correct it")
    return tuple(value)


def _toml(value: str | tuple[str, ...]) -> str:
    # A JSON string is a TOML basic string once nothing outside the first plane is escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535


def _is_chosen_by_system(address: str) -> bool:
    _, _, host, _, port, *_ = address.split("/")
    return port == "0" or host in ("0.0.0.0", "::")  # noqa: S104  (compared, not bound)
