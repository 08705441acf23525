"""What a node remembers: synchronous, ordered, checked on every read. Knows `protocol`, never the network.

Tour
    `key_value`        `Batch` and the `KeyValue` protocol that all the rest is written against
    `leveldb`          the real one; `memory` the one that simulations crash; one contract suite for both
    `write_ahead_log`  tells a torn log tail from a damaged one, which the engine cannot
    `databases`        the databases of a home: options, and the command that mends each
    `keyspace`         every key layout of every database, one table
    `payload_store`    ciphertext under increasing sequences, in a database of its own
    `chunk_index`      where each chunk lies, who needs it, when it was last read: rows of the ledger database
    `chunk_store`      both together: chunks by content id
    `envelope_store`   envelopes and attachments by hash
    `ledger_store`     blocks, proofs, hard state and ledger state
    `tree_store`       nodes of the Merkle tree over all transactions, so that a proof is a few short reads
    `snapshot_store`   state snapshots, whole or being fetched, in a database of their own
    `keystore`         secrets sealed under a passphrase or a key file
    `scrub`            reads everything back and names what is damaged
    `scrub_walk`       the same for chunks in portions, going on where a restart broke it off
    `growth`           what the chunk store held, day by day
    `mend`             a ledger in which only blocks are damaged, made anew; `mend_walk` finds what rots in it
    `rescue`           what a damaged database holds that nobody else has, read without the engine (`table_file`)
    `disk_reserve`     what writes of records leave free
    `directories`      durable names, and moving a damaged database aside

Glossary
    batch       writes that happen together or not at all; *synchronised*: on stable storage when the call returns
    payload     the bytes of a chunk as the payload database holds them, under a *sequence*
    cursor      the sequence below which every payload is in the index
    quarantine  a payload that failed its check: its chunk counts as absent until it is stored again
    reclaim     rewriting tables without what was deleted; only then are the bytes gone

Order of calls
    Open `payloads/` and `ledger/` (`databases`), then make the `ChunkStore`: it replays the payload
    tail and finishes interrupted deletions. Store chunks (durable on return), then commit envelope and index rows,
    then whatever refers to them; read in the opposite order. Before a record is written, `check_reserve`. When
    idle, `flush`. Close the databases last: `close` waits for calls in other threads.

Goals: nothing that was reported durable is lost; nothing damaged is served; the cause and the cure in one sentence.
Non-goals: several processes on one database, transactions that span databases, queries beyond ordered keys.
"""
