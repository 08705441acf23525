"""What is true: pure code, values in, values out. No I/O, no clock, no randomness.

A tour, in reading order: `errors` and `limits`; `identifiers`, `codec`, `signing`, `merkle`, `cid`; `configuration` (who
is in the network); `transaction`, `block`, `certificate` (what is signed); `ledger_state` (what it means); `raft` (the
order); `snapshot` (the state, and whose word it is); `catchup`, `placement`, `chunk_exchange` (what members tell each
other); `checkpoint`, `log_witness` (what the world is told, and what witnesses of logs say to it); `change_proof`,
`receipt_file`, `light_client`, `trust_policy`, `cross_anchoring` (what people outside check, and what we check of other networks); `hpke`, `sealing`, `envelope`, `manifest`, `padding` (how a record is closed); `patient_keys`, `wallet`, `wraps`
(who can open it); `health` (what is in it).

Glossary. A *block* is a ledger block, and a Raft log entry. A *chunk* is stored ciphertext named by its *CID*; a
*chunk of state* is a piece of a snapshot. A *record* is one document of one patient and one category; its *envelope* holds the wrapped keys. A *vault* is one
patient and one category. A *voter* runs Raft; an *observer* follows. *Final* means committed with a proof and applied.
"""
