"""The Raft core of the ledger, without I/O: ticks, messages and proposals in; `Ready` out.

Glossary
--------
*block*: a log entry; its height is its Raft index. *term leader*: the one leader of a term whose election certificate was
verified. *opening*: the block that opens a term; its body is that certificate; Raft's no-op. *acknowledgement*: a voter's
signature that its durable log equals the leader's up to a height. *marker*: the newest acknowledgement as the hard state
remembers it. *commit proof*: a quorum of acknowledgements of one term; replaces Raft's `leaderCommit`: what has one is *ordered*.
*commit vote*: a signer's signature for what is ordered, upon a *base* that it knows to be certified. *certificate*: the votes of q
signers: what has one is final. *signer*: a voter, or a *witness*, which votes on certificates and takes no part in ordering. *frame*: one
AppendEntries. *heartbeat*: says that the leader leads, and nothing of logs; *round*: a number that heartbeats carry and their
answers repeat. *probe*, *replicate*, *snapshot*: how a leader sends to one follower (`progress`). *offer*: an
InstallSnapshot; it says that the leader does not hold what its receiver needs, and carries no data (`snapshot`). *lease*: a leader was heard within the
least election time-out; used against disruption only, never for reads. *learner*: receives blocks, is never counted.
*configuration in force*: that of the newest configuration block in the log, certified or not.

Goals
-----
Crash-fault consensus as in Ongaro and Ousterhout (the extended Raft paper) with PreVote and CheckQuorum (Ongaro's thesis
§9.6, §6.2), leadership transfer (§3.10), linearizable reads without leases (ReadIndex, §6.4) and membership changes by one
voter at a time (chapter 4), and every promise in a signed form that can be shown to others (ledger.md 1.1, P0 to P3). Nothing is handed
out before a certificate has made it final (P4 to P6): up to b liars among the signers cannot have two histories certified, and
what they would need to say for it is kept (`Ready.contradictions`). Deterministic: the same inputs give the same bytes. Bounded:
frames, windows, uncertified blocks, votes, caches (`protocol.limits`).

Non-goals
---------
Liveness under a liar: honest votes may split for ever (ledger.md 1.1, Liveness). Convicting anybody: evidence is put together above. State: an installation is the driver's, here it is only asked for and started from. Who may change the membership: ballots decide, above. Verifying
transactions: the driver does so, in worker threads, before `step`.

The machine
-----------
```
          time-out                 quorum of PreVotes           quorum of grants: cut the opening
 ┌──────────┐      ┌───────────────┐         ┌───────────┐              ┌────────┐
 │ FOLLOWER │ ───► │ PRE_CANDIDATE │ ──────► │ CANDIDATE │ ───────────► │ LEADER │
 └──────────┘      └───────────────┘         └───────────┘              └────────┘
   ▲  ▲ ▲             │   │  ▲  time-out           │ │                      │
   │  │ └─────────────┘   │  └─────────────────────┼─┘                      │
   │  │  frame of a verified leader, higher term   │                        │
   │  └────────────────────────────────────────────┘                        │
   └────────────────────────────────────────────────────────────────────────┘
                          higher term, or no quorum heard (CheckQuorum)
```
A voter alone in its network passes through all of them in its first tick. A follower that its leader tells to (TimeoutNow)
skips PreVote. A learner, a witness, and a voter whose removal is certified stay followers. One that has waited too long for
anything to become final asks for an election while it follows (`patience`).

What the driver owes
--------------------
1. `tick` every limits.TICK_MS; `step` each message of an authenticated voter, an AppendEntries with blocks only as the
   `CheckedAppend` that `messages.check_append` returns. When that raises, drop the message and call `distrust(sender)`.
2. After any inputs, the more the better, `ready()` until it returns None. For each Ready:
   a. write hard_state, truncation, blocks and certificates to `keep` in ONE synchronous batch (`Ready.must_persist`);
   b. then send the messages, in order. They may be lost, late or doubled; never send before (a) is durable: a vote or an
      acknowledgement forgotten in a crash could be contradicted (Raft §5.2, ledger.md decision 6);
   c. hand `certified` and `certificate` on; they are durable already. Keep `contradictions`;
   d. answer each of `reads` when the applied height has reached the height it names, or with "not known" for None;
   e. `advance(ready)`. The leader's own acknowledgement, and the own commit vote, count only from here.
   Inputs may be given between `ready` and `advance`: write (a) beside them, and call `ready` again. What comes while another
   waits promises nothing and leaves at once: frames, heartbeats and what reads need. Send what `messages.is_urgent` on a path
   of its own, where no block stands in the way.
3. When a write fails, stop: nothing that a Ready promises may leave, and a failed write is never taken for a success.
4. At start: the configuration in force above the applied height, `Log(reader, applied height, frontier there, durable blocks above)`, the last durable HardState, a new seed.
   Certificates that were kept above the applied height are read through the reader, and what they certify is handed on.
   Blocks below the applied height may be missing: `LogReader.first` says from where on they are all there.
5. An observer makes no Raft at all; a learner and a witness do.
6. `Ready.behind` asks for what the leader cannot send. Get state, or blocks, to about that height or above from any member,
   verify it, stop this machine, install, and start another as in 4 from the *same* hard state: at a height that a stored
   certificate names, and with a stored tail only if it follows the installed block, else delete all of it (hashicorp/raft
   #697) and write `HardState.leaving` with it. What was promised of a tail that is kept stands (camunda #6092). Until then
   this machine may go on. The next one leaves a term in which it acknowledged what it cannot compare with the installed block.
7. `expect_configuration` after each start, and whenever the configuration that is pending in the applied state changes.

Reading order: `messages`, `leader_forms`, `state`, `log`, `progress`, `quorum`, `membership`, `keeping`, `voter`, `certifying`, `patience`, `election`, `snapshot`,
`following`, `heartbeat`, `read_index`, `transfer`, `departures`, `replication`, `output`, `view`, `requests`, `machine`.
"""
