"""What a node remembers, opened: handed from `daemon` to whoever wires services on it."""

from collections.abc import Callable
from dataclasses import dataclass

from node.backup import NO_FILES, HomeFiles
from node.chunk_writer import ChunkWriter
from node.store_audit import Database
from storage.chunk_store import ChunkStore
from storage.key_value import KeyValue
from storage.keystore import Keystore


@dataclass(frozen=True, slots=True)
class Stores:
    """What the node remembers: the ledger database's rows, the chunks, the keys; `databases` are all of them, for audits.

    `files` are what a backup takes along from the home; `writer` is how chunks are stored beside everything else.
    `remove_asides` deletes the damaged databases that were kept, and returns how many there were.
    """

    rows: KeyValue
    chunks: ChunkStore
    writer: ChunkWriter
    keystore: Keystore
    databases: tuple[Database, ...]
    files: HomeFiles = NO_FILES
    remove_asides: Callable[[], int] = int
