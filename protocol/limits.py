"""Every bound, with its unit and its reason. A queue, batch, message or upload without one is a bug."""

KIB = 1024
MIB = 1024 * KIB

# --- wire -----------------------------------------------------------------------------------------------------
MESSAGE_BYTES_MAX = 20 * MIB
"""One canonical message: a full AppendEntries (16 MiB) or a 16 MiB write of chunks, plus framing."""
GOSSIP_BODY_BYTES_MAX = 48 * KIB
"""A block rides along with its announcement up to here; above, it is pulled (gossip is kept under 64 KiB)."""

# --- blocks ---------------------------------------------------------------------------------------------------
BLOCK_BYTES_MAX = 1 * MIB
"""A leader cuts a block before its body passes this: large enough to hide fsync, small enough to pipeline."""
BLOCK_TRANSACTIONS_MAX = 1000
TRANSACTION_BYTES_MAX = 16 * KIB
"""The largest honest transaction (a Read of 64 records) is 3 KiB; evidence alone may be longer."""
EVIDENCE_BYTES_MAX = 48 * KIB
"""Evidence fits into one gossip message, and into a transaction; what is longer is compressed."""
EVIDENCE_UNPACKED_BYTES_MAX = 256 * KIB
"""Two certificates of 64 votes with 64 headers above each, and 64 up to either from where they part, have 91 KB."""
ACCUSATION_BYTES_MAX = EVIDENCE_BYTES_MAX + KIB
"""The one kind of transaction that may be longer: evidence with a signature."""
EVIDENCE_HEADERS_MAX = 64
"""Headers of one line in evidence: what may stand uncertified upon one block. A header has 300 bytes."""
NOTEBOOK_HEADERS_MAX = 2_048
NOTEBOOK_STATEMENTS_MAX = 64
"""What a node notes of what others signed: headers in all, and statements of each member and kind. 2 MB with 20 members."""
EVIDENCE_PENDING_MAX = 64
"""Evidence on its way to the ledger; when there is more, it is dropped: who lies so often is convicted of a part of it."""
EVIDENCE_NOTE_BYTES_MAX = 2 * KIB
"""A checkpoint of ours with the one signature that matters has 300 bytes."""
VALID_UNTIL_MS_MAX = 24 * 3600 * 1000
"""How far ahead of ledger time a transaction may stay valid; bounds the replay index (ledger.md decision 4)."""
CLOCK_AHEAD_MS_MAX = 5_000
"""A voter holds its acknowledgement while a block is further ahead of its own clock (ledger.md P-time)."""
CLOCK_SKEW_WARN_MS = 2_000
MEMBERS_MAX = 64
CONFIGURATION_BYTES_MAX = 128 * KIB
"""A configuration that a ballot sets: with a row of state around it, it fits a chunk of a snapshot twice."""
PROPOSALS_OPEN_MAX = 32
"""Proposals that wait for ballots; further ones are refused until one of them has ended."""
PROPOSAL_MS_MAX = 90 * 86_400_000
BALLOTS_MAX = MEMBERS_MAX
WRITERS_MAX = 64
RECEIPTS_MAX = 64
READ_RIDS_MAX = 64
PURPOSES_MAX = 8
GRANT_MS_MAX = 5 * 366 * 86_400_000
EPOCH_GRACE_MS = 24 * 3600 * 1000
"""A record may still be committed under the previous category epoch for this long."""
READ_OPEN_MS = 600_000

# --- raft -----------------------------------------------------------------------------------------------------
TICK_MS = 50
HEARTBEAT_TICKS = 2
"""100 ms."""
ELECTION_TICKS_MIN = 20
ELECTION_TICKS_MAX = 40
"""1 to 2 s, drawn anew for every term."""
TERM_MAX = 1 << 40
"""Far beyond what elections reach: who states more after the loss of a majority would leave the next epoch none to count up to."""
TERM_AHEAD_MAX = 1_000
"""A message further ahead is ignored unless it carries an election certificate (ledger.md decision 12)."""
APPEND_BYTES_MAX = 1 * MIB
APPEND_BLOCKS_MAX = 64
IN_FLIGHT_APPENDS_MAX = 4
IN_FLIGHT_BLOCKS_MAX = 128
IN_FLIGHT_BYTES_MAX = 2 * MIB
"""Frames, blocks and bytes under way to one follower; the frame that reaches a bound may pass it, so that any block fits."""
READS_PENDING_MAX = 4_096
"""Linearizable reads that wait for a round of heartbeats, at their leader or at the voter that forwarded them."""
PROBES_PER_HEARTBEAT_MAX = 8
"""Frames that refusals of one follower call forth at once; further ones wait. An honest one names a common block in two or three."""
REFUSAL_HINTS_MAX = 32
"""Terms a follower names when it refuses an append; beyond, the leader goes back to the follower's committed block."""
OWN_ACKNOWLEDGEMENTS_CACHED = 16
"""Own acknowledgements a follower recognises in a commit proof without verifying them."""
FRAME_SIGNATURES_CACHED = 64
"""Signed (prev, tip) pairs a leader keeps, so that one signature serves all followers."""
CLOCK_AHEAD_HOLD_TICKS_MAX = 80
"""Two election time-outs: a leader whose blocks stay ahead of our clock for longer is treated as dead (ledger.md, Time)."""
UNCOMMITTED_BLOCKS_MAX = 64
UNCOMMITTED_BYTES_MAX = 16 * MIB
UNCERTIFIED_BLOCKS_MAX = 64
UNCERTIFIED_BYTES_MAX = 16 * MIB
"""What may stand above the highest certificate; at the limit a leader proposes nothing but the openings of terms (P6)."""
CERTIFICATES_CACHED = 64
"""Certificates kept in memory for followers; older ones are read back from the ledger store."""
VERDICTS_CACHED = 1_024
"""Of each kind of statement: whether its signature holds, so that one which comes again is not verified again."""
VOTE_NOTICE_TICKS = 4
VOTE_NOTICE_AGAIN_TICKS = 20
"""When a signer whose commit vote has not been certified tells all others of it, and how often again (P6)."""
CERTIFIED_PROGRESS_TICKS_MIN = 200
CERTIFIED_PROGRESS_TICKS_MAX = 6_000
"""10 s, doubling up to 5 min: how long a voter waits for certified progress before it starts an election (P6)."""
CERTIFIED_PROGRESS_STAGGER_TICKS = 10
"""Half a second between those voters: they lose patience in one moment, and would split the vote."""
LOG_CACHE_BYTES_MAX = 8 * MIB
"""Recent blocks kept in memory for followers; older ones are read back from the ledger store."""
POOL_TRANSACTIONS_MAX = 20_000
POOL_BYTES_MAX = 32 * MIB
CONSENSUS_INPUTS_MAX = 4_096
"""Inputs queued for the consensus task; when full, peers' messages are dropped (Raft re-sends) and clients wait."""

# --- records and chunks ---------------------------------------------------------------------------------------
CHUNK_PLAIN_BYTES = 1_048_560
CHUNK_BYTES_MAX = 1 * MIB
MANIFEST_PAGE_CIDS_MAX = 30_000
"""Ids in a manifest or a page of one: 34 bytes each, so that a page fits a chunk."""
RECORD_BYTES_MAX = 64 * 1024 * MIB
SORTED_BYTES_MAX = 64 * MIB
"""A larger file that is not NDJSON is not sorted into categories: one record, `mixed`."""
ENVELOPE_BYTES_MAX = 8 * KIB
ATTACHMENT_BYTES_MAX = 64 * KIB
REPLICAS_DEFAULT = 3
CHUNKS_IN_FLIGHT_PER_PEER = 8
QUEUE_RECORDS_MAX = 10_000
"""Records sealed and waiting to become final; when full, `record add` is refused."""
DISK_RESERVE = 0.05
"""Share of the disk that writes of records leave to the ledger."""
SCRUB_PERIOD_S = 30 * 24 * 3600
"""Within so long every stored chunk is read back and checked (storage.md 4)."""
CHALLENGE_PERIOD_S = 60
"""One member at a time has to prove that it has a chunk."""
ABANDONED_S = 24 * 3600
"""A chunk that no record names after so long belongs to an upload that nobody goes on with (storage.md 4)."""

# --- network --------------------------------------------------------------------------------------------------
PUBLISH_BYTES_MAX = 64 * KIB
"""One gossip message; GossipSub refuses silently above 1 MiB and is meant for hints."""
GOSSIP_FROM_PEER_BURST = 1_024
GOSSIP_FROM_PEER_PER_S = 200
"""Gossip messages that one peer may forward; further ones are dropped unread. A leader announces 20 a second, one takes 1 ms."""
GOSSIP_SUBSCRIPTIONS_BURST = 64
GOSSIP_SUBSCRIPTIONS_PER_S = 8
"""Subscriptions and their ends that one peer may tell; an honest one tells a few when it connects."""
GOSSIP_ANSWERS_BURST = 256
GOSSIP_ANSWERS_PER_S = 64
"""Gossip messages that one peer may ask for again: 16 MiB at once, of the longest."""
PEER_QUEUE_BYTES_MAX = 64 * MIB
"""Frames queued for one peer on one stream; above, sends are dropped and calls wait. Holds three messages at most size."""
PEER_QUEUE_MESSAGES_MAX = 4_096
WRITE_COALESCE_BYTES = 64 * KIB
"""Queued frames are written together up to here: one yamux frame, one Noise message."""
CALLS_IN_HAND_PER_PEER_MAX = 64
CALL_BYTES_IN_HAND_PER_PEER_MAX = 64 * MIB
"""Requests of one peer whose handlers have not finished; above either bound the answer is "busy"."""
FETCHES_IN_HAND_PER_PEER_MAX = 16
"""Answers of many pieces to one peer at a time: one that reads nothing keeps a piece of each in memory, three times 4 MiB."""
STREAMS_PER_CONNECTION_MAX = 128
"""Streams that either end of a connection may hold open; further ones are reset."""
STREAMS_BURST = 512
STREAMS_PER_S = 64
"""Streams a peer may begin, on one connection; further ones are reset. One costs half a millisecond, a fetch has one."""
STREAM_WINDOW_BYTES_MAX = 4 * MIB
"""Yamux receive window of one stream: 80 MiB/s at 50 ms; larger windows only hold memory for slow readers.

A peer that sends more into an unread stream ignores the window: its connection is closed."""
STREAM_GROWTH_BYTES_MAX = 32 * MIB
"""Of all windows of one connection, above the 256 KiB that each stream has at first: eight streams at full size."""
HALF_OPEN_PER_ADDRESS_MAX = 32
"""Inbound handshakes in progress from one IP address; the oldest gives way. An honest one takes 20 ms."""
HALF_OPEN_MAX = 256
HANDSHAKES_PER_ADDRESS_BURST = 128
HANDSHAKES_PER_ADDRESS_PER_S = 16
"""Inbound handshakes that one address (of IPv6: one /64) may begin; further connections are closed unread.

A handshake takes 2 to 4 ms of processor time: so one address costs 6 % of a core. Every member may be behind one address."""
HANDSHAKE_ADDRESSES_MAX = 4_096
"""Addresses whose handshakes are counted, 1 MB; who has more is held back by nothing here."""
PROTOCOL_NAME_BYTES_MAX = 1 * KIB
"""A line of libp2p's negotiation of protocols; ours have 40 bytes."""
CONNECTIONS_PER_PEER_MAX = 4
"""Inbound connections one peer may have at a time: an honest one has one, and one or two that are being closed.

There are four for each of `MEMBERS_MAX` in all, so that no peer can take the places of others."""
PEER_ADDRESSES_MAX = 8
"""Addresses kept per peer and source; the least recently confirmed gives way."""
DIAL_BACKOFF_MS_MIN = 250
DIAL_BACKOFF_MS_MAX = 5_000
DIAL_YIELD_MS = 3_000
"""The higher node id waits this long for the lower one to dial."""

# --- state snapshots ------------------------------------------------------------------------------------------
SNAPSHOT_UNIT_BLOCKS = 1_000
"""The first snapshot, and the grid of all later ones (`protocol.snapshot`)."""
SNAPSHOT_CHUNK_BYTES = 256 * KIB
"""Rows of state gathered into one chunk before it is compressed; the row that reaches the bound may pass it."""
SNAPSHOT_CHUNK_BYTES_MAX = 512 * KIB
"""One chunk as it is hashed: the bound, the longest row and the framing of short ones. What inflates beyond it is no chunk."""
SNAPSHOT_CHUNKS_MAX = 131_072
"""32 GiB of state; their hashes fit one message."""
SNAPSHOT_STATEMENTS_MAX = 8
"""A voter's newest own state statements that it answers with: members finish one height at different times."""

# --- proofs ---------------------------------------------------------------------------------------------------
PROOF_HEADERS_MAX = 4_096
"""Headers between a block and the certified one above it: 1.2 MB of a receipt. A member that was there holds closer ones."""
DAY_MS = 24 * 3600 * 1000
ANCHOR_WARN_MS = 15 * DAY_MS
ANCHOR_FRESH_MS = 30 * DAY_MS
"""How long another network's newest certified header is good for: keys given up since could tell another past (ledger.md 8)."""
POLICY_BYTES_MAX = 64 * KIB
FOREIGN_NETWORKS_MAX = 16
"""Networks of which one member records what it sees."""
RECEIPT_FILE_BYTES_MAX = 28 * MIB
"""A receipt as text: a message of the longest kind in base64. One of 5 members behind 100 changes has half a MiB."""

# --- checkpoints ------------------------------------------------------------------------------------------------
NOTE_BYTES_MAX = 256 * KIB
NOTE_SIGNATURES_MAX = 128
"""Of every member and as many witnesses again. The longest signature in use, ML-DSA-44 in base64, has 3.3 KB."""
CONSISTENCY_HASHES_MAX = 63
"""Of C2SP tlog-witness; a tree of 2^63 leaves needs no more."""
CHECKPOINTS_KEPT = 16
"""Newest sizes of which signatures are gathered: as many seconds."""
LOG_REQUESTS_MAX = 64
"""Requests to cosign in hand at once, of strangers too: 17 MB of bodies."""
LOG_WITNESSES_MAX = 16
"""Outside witnesses, and foreign logs that this node is a witness of."""
