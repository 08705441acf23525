# 1, Figure 8 (Raft §5.4.2): leaders that reach a minority only, and crash, one after the other; a block that an older
# leader left on a majority is committed by no counting of a later one.
world tier=a seed=1 nodes=5 observers=0 seconds=16
load clients=4 mean_s=0.2
at 2 cut out leader 0 1 for 0.6
at 2.4 crash leader for 3
at 6 cut out leader 3 4 for 0.6
at 6.4 crash leader for 3
at 10 cut out leader 1 2 for 0.6
at 10.4 crash leader for 3
expect crash == 3
expect leader_changes >= 4
