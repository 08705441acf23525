"""Every key layout, in one table. Prefixes of one database are free of prefixes of each other (a test checks).

Numbers in keys are unsigned, big-endian, 8 bytes, so that they sort as numbers. `‖` is concatenation; values in
brackets are canonical MessagePack arrays (`protocol.codec.pack`).
"""

from dataclasses import dataclass

FORMAT = b"format"
"""In every database: u16be version of its layout. Read and written by `leveldb` alone; scans do not show it."""

SEQUENCE_END = b"\xff" * 9
"""Above every sequence key, and above every prefix: the end of a scan over a whole database."""

# --- ledger/: chunks ------------------------------------------------------------------------------------------
CHUNK = b"c"
CHUNK_CURSOR = b"C"
CHUNK_REFERENCES = b"n"
CHUNK_SCRUBBED = b"s"
CHUNK_QUARANTINE = b"q"
CHUNK_RECLAIM = b"x"
SCRUB_WALK = b"K"
GROWTH = b"g"

# --- ledger/: envelopes ---------------------------------------------------------------------------------------
ENVELOPE = b"e"
ENVELOPE_OF_RECORD = b"r"
ATTACHMENT = b"a"

# --- ledger/: the ledger itself ---------------------------------------------------------------------------------
BLOCK = b"B"
CERTIFICATE = b"P"
FORK = b"k"
STATE = b"S"
APPLIED = b"A"
HARD_STATE = b"H"
REBUILT = b"R"
FROZEN = b"v"
LOST = b"X"
LEDGER_WALK = b"V"
STATE_OTHER = b"T"
STATE_IN_USE = b"u"
HISTORY = b"h"
TREE = b"M"
EVIDENCE = b"N"
LOG_WITNESS = b"w"
CHECKPOINT = b"p"
FOREIGN = b"o"

# --- ledger/: this facility's own rows about records ------------------------------------------------------------
RECORD_QUEUE = b"Q"
RECORD_NOTE = b"I"
RECORD_FILE = b"i"
FINGERPRINT = b"F"
CHUNK_LIST = b"l"
UNDER_REPLICATED = b"U"
LACKING = b"L"
STANDING = b"y"
ERASURE = b"d"
DESTRUCTION = b"D"
WATCH_MARK = b"W"
RESTORED = b"Z"
TICKET = b"j"

# --- ledger/: this facility's own rows about vaults and grants ----------------------------------------------------
EPOCH = b"E"
WRAP_DUE = b"G"
ROTATION_DUE = b"O"

# --- snapshots/ -------------------------------------------------------------------------------------------------
SNAPSHOT_MANIFEST = b"m"
SNAPSHOT_CHUNK = b"c"
SNAPSHOT_STATEMENT = b"t"
SNAPSHOT_TARGET = b"g"
SNAPSHOT_BELIEVED = b"b"

# --- keys/ ----------------------------------------------------------------------------------------------------
MASTER_KEY = b"m"
SECRET = b"k"
RECOVERY = b"r"


@dataclass(frozen=True, slots=True)
class Rows:
    """One family of rows: where it lives, how its keys and values are laid out, and the one module that writes it."""

    database: str
    prefix: bytes
    key: str
    value: str
    owner: str


TABLE = (
    # payloads/: nothing else may live here, or tables overlap and every byte is rewritten per level (storage.md 1)
    Rows("payloads", b"", "sequence u64be", "cid[32] ‖ ciphertext", "payload_store"),
    # ledger/: chunks. Each family has one writer, so that no row is ever read, changed and written by two.
    Rows("ledger", CHUNK, "cid", "[sequence, bytes]", "chunk_index"),
    Rows("ledger", CHUNK_CURSOR, "", "[next sequence to index]", "chunk_index"),
    Rows(
        "ledger",
        CHUNK_REFERENCES,
        "cid ‖ rid",
        "empty: a record names the chunk",
        "chunk_holder, record_queue, destruction, by chunk_index",
    ),
    Rows("ledger", CHUNK_SCRUBBED, "cid", "[Unix ms of the last good reading]", "scrub, by chunk_index"),
    Rows("ledger", CHUNK_QUARANTINE, "sequence u64be", "cid: a payload that failed its check", "chunk_index"),
    Rows(
        "ledger",
        CHUNK_RECLAIM,
        "sequence u64be",
        "cid (none in an older store): deleted, space not yet given back",
        "chunk_index",
    ),
    Rows("ledger", SCRUB_WALK, "now or last", "a reading of all chunks: how far, what was bad", "scrub_walk"),
    Rows("ledger", GROWTH, "Unix ms u64be", "[chunks, bytes, next sequence] at that time", "growth"),
    # ledger/: envelopes
    Rows("ledger", ENVELOPE, "SHA-256 of the envelope", "the envelope", "envelope_store"),
    Rows("ledger", ENVELOPE_OF_RECORD, "rid", "SHA-256 of its envelope", "envelope_store"),
    Rows("ledger", ATTACHMENT, "SHA-256 of the attachment", "the attachment", "envelope_store"),
    # ledger/: the ledger itself
    Rows("ledger", BLOCK, "height u64be", "the block's bytes, for ever", "ledger_store"),
    Rows("ledger", CERTIFICATE, "height u64be", "certificate", "ledger_store"),
    Rows("ledger", FORK, "height u64be", "two certified stories that part at a height", "ledger_store"),
    Rows("ledger", STATE, "ledger_state's own keys", "ledger_state's own values", "ledger_store"),
    Rows("ledger", APPLIED, "", "how far the state has come", "ledger_store"),
    Rows("ledger", HARD_STATE, "", "Raft hard state", "ledger_store"),
    Rows("ledger", REBUILT, "", "empty: refilled from peers, not caught up yet", "ledger_store"),
    Rows(
        "ledger", FROZEN, "", "[epoch in which this signer signs no more, 1 when somebody may know]", "epochs"
    ),
    Rows(
        "ledger", LOST, "height u64be", "empty: an applied block that was damaged here, to be fetched", "mend"
    ),
    Rows("ledger", LEDGER_WALK, "", "[key at which the walk over all rows goes on]", "block_repair"),
    # State is under one of two prefixes: a snapshot is installed under the other one, which is then taken into use.
    Rows("ledger", STATE_OTHER, "ledger_state's own keys", "ledger_state's own values", "ledger_store"),
    Rows("ledger", STATE_IN_USE, "", "the prefix of the state in use; absent: S", "ledger_store"),
    Rows("ledger", HISTORY, "", "how far the blocks below an installed snapshot have come", "ledger_store"),
    Rows(
        "ledger",
        TREE,
        "level / 8 as u8 ‖ index u64be; or 0xff",
        "consecutive hashes of the tree; how far they are computed again",
        "tree_store",
    ),
    Rows(
        "ledger",
        LOG_WITNESS,
        "nothing; or SHA-256 of a log's origin",
        "id of this memory, which names its key; or [size, root] cosigned last",
        "log_witness",
    ),
    Rows(
        "ledger",
        EVIDENCE,
        "SHA-256 of the evidence",
        "evidence found or heard of here, not on the ledger yet",
        "evidence",
    ),
    Rows("ledger", CHECKPOINT, "size u64be", "a checkpoint with the signatures gathered", "checkpoints"),
    Rows("ledger", FOREIGN, "id of another network", "what is known of it, and whose word counts", "foreign"),
    # ledger/: this facility's own rows about records, never sent; "sealed" is nonce[24] ‖ ciphertext under a facility key
    Rows("ledger", RECORD_QUEUE, "rid", "a sealed record that is not final yet, sealed", "record_queue"),
    Rows(
        "ledger", RECORD_NOTE, "rid", "what this facility knows of a record it added, sealed", "record_index"
    ),
    Rows(
        "ledger", FINGERPRINT, "keyed fingerprint of a file", "the records it became, sealed", "record_index"
    ),
    Rows("ledger", RECORD_FILE, "rid of the first", "keyed fingerprint of its file, sealed", "record_index"),
    Rows("ledger", CHUNK_LIST, "rid", "the record's chunks and their placement", "chunk_holder"),
    Rows("ledger", UNDER_REPLICATED, "rid", "[member that has not confirmed its share, …]", "repair"),
    Rows("ledger", LACKING, "rid", "empty: envelope or chunks that should be here are not", "repair"),
    Rows("ledger", STANDING, "node id", "how a member has proved that it has its chunks", "standings"),
    Rows("ledger", ERASURE, "rid", "an erasure asked for here, and who attested it, sealed", "erasure"),
    Rows("ledger", DESTRUCTION, "rid", "an erased record: what is left to delete here", "destruction"),
    Rows("ledger", WATCH_MARK, "name of the watcher", "[height it has seen to]", "each watcher"),
    Rows(
        "ledger", RESTORED, "", "[Unix ms of the restore]: the keys are older than the ledger", "lost_vaults"
    ),
    Rows("ledger", TICKET, "id of a ticket", "the nonce of the joiner who has used it", "ticket_desk"),
    # ledger/: this facility's own rows about vaults and grants, never sent
    Rows("ledger", EPOCH, "vid ‖ epoch u64be", "[category key, link_hash, wraps_hash]", "epochs"),
    Rows("ledger", WRAP_DUE, "gid", "empty: a grant's key is still to be opened", "grant_watcher"),
    Rows("ledger", ROTATION_DUE, "vid", "[Unix ms after which the epoch must change]", "grant_watcher"),
    # snapshots/
    Rows("snapshots", SNAPSHOT_MANIFEST, "height u64be", "manifest of a whole snapshot", "snapshot_store"),
    Rows("snapshots", SNAPSHOT_CHUNK, "height u64be ‖ index u64be", "chunk, compressed", "snapshot_store"),
    Rows("snapshots", SNAPSHOT_STATEMENT, "height u64be", "this voter's statement", "snapshot_store"),
    Rows("snapshots", SNAPSHOT_TARGET, "", "manifest of the snapshot being fetched", "snapshot_store"),
    Rows("snapshots", SNAPSHOT_BELIEVED, "", "the statements that it was believed for", "snapshot_store"),
    # keys/
    Rows(
        "keys", MASTER_KEY, "", "[how, salt, operations, memory bytes, nonce, sealed master key]", "keystore"
    ),
    Rows("keys", SECRET, "name", "nonce[24] ‖ sealed secret", "keystore"),
    Rows("keys", RECOVERY, "", "[public recovery key, master key sealed to it]", "keystore"),
)


def sequence_key(sequence: int) -> bytes:
    """Return a number as 8 bytes that sort as the number."""
    return sequence.to_bytes(8, "big")


def prefix_range(prefix: bytes) -> tuple[bytes, bytes]:
    """Return (start, stop) of a scan over all keys that begin with a prefix (not one of 0xff bytes only)."""
    stem = prefix.rstrip(b"\xff")
    return prefix, stem[:-1] + bytes([stem[-1] + 1])
