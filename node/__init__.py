"""What happens: the network, the clock, the disk, the daemon and its command line.

`ports` names the five seams to the world; `libp2p_transport`, `disk` and `system` are their real sides. `core` assembles
the ledger part of a node from ports (`participation`, `consensus`, `applier`, `gossip`, `catchup`, `block_server`, `forks`, `receipts`, `standing`; for who is far behind
`snapshots`, `snapshot_claims`, `snapshot_install` and `history`); `ingest`, `replication`, `query`, `consent` and `audit`
stand on it, and so do `tree`, `checkpoints`, `witness_client` and `log_witness` (`checkpointing` wires them),
`receipt_proofs` and `update_proofs` (for people outside), and `foreign` (other networks); `daemon`
wires everything; `cli` and `web` are how people reach it.
"""
