# 2, the older tail (canonical/raft #336): a leader dies with blocks that are stored and not committed; the next one commits
# them through its opening block.
world tier=b seed=2 nodes=3 observers=0 seconds=12
load clients=3 mean_s=0.5
at 3 crash leader for 1 in-write
at 7 crash leader for 1 in-write
expect leader_changes >= 3
expect acked >= 10
