# 19, messages come twice, late and in any order, across changes of the leader: nothing counts twice.
world tier=b seed=19 nodes=3 observers=1 seconds=20
quality delay_ms=20 jitter_ms=60 loss=0.05 duplicate=0.3 reorder=0.5
load clients=3 mean_s=0.3
at 5 crash leader for 1
at 10 cut both leader for 2
expect leader_changes >= 2
