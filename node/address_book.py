"""Where the members were last found: a small JSON file that survives restarts. Hints only; losing it costs seconds."""

import contextlib
import json
import os
from pathlib import Path

from node.event_log import EventLog
from protocol import limits
from protocol.identifiers import NodeId, node_of_peer_id, peer_id

_FILE_BYTES_MAX = limits.MIB


class AddressBook:
    """Up to `limits.PEER_ADDRESSES_MAX` multiaddrs per member, the last confirmed first.

    The file is replaced atomically on every change; changes are rare (a member was reached at a new address).
    """

    def __init__(self, path: Path, log: EventLog) -> None:
        self._path = path
        self._log = log
        self._addresses = self._load()

    def addresses(self, node: NodeId) -> tuple[str, ...]:
        """Return the known addresses of a member, the last confirmed first."""
        return self._addresses.get(node, ())

    def remember(self, node: NodeId, address: str) -> None:
        """Put a confirmed address first."""
        known = self.addresses(node)
        if known[:1] != (address,):
            others = tuple(other for other in known if other != address)
            self._replace(node, (address, *others)[: limits.PEER_ADDRESSES_MAX])

    def forget(self, node: NodeId, address: str) -> None:
        """Drop an address at which somebody else was found."""
        known = self.addresses(node)
        if address in known:
            self._replace(node, tuple(other for other in known if other != address))

    def _replace(self, node: NodeId, addresses: tuple[str, ...]) -> None:
        self._addresses[node] = addresses
        table = {peer_id(known): list(places) for known, places in sorted(self._addresses.items()) if places}
        temporary = self._path.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
            # No fsync: after a crash either version will do, and the loader takes neither for granted.
            os.replace(temporary, self._path)  # noqa: PTH105 - `replace` names the atomic system call
        except OSError as error:
            self._log.warning("address book not saved", error=type(error).__name__)
            with contextlib.suppress(OSError):  # it may not exist
                temporary.unlink()

    def _load(self) -> dict[NodeId, tuple[str, ...]]:
        try:
            if self._path.stat().st_size > _FILE_BYTES_MAX:
                raise ValueError("too large")
            table = json.loads(self._path.read_text(encoding="utf-8"))
            return {
                node_of_peer_id(peer): tuple(str(address) for address in addresses)[
                    : limits.PEER_ADDRESSES_MAX
                ]
                for peer, addresses in table.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            self._log.warning("address book ignored", error=type(error).__name__)
            return {}
