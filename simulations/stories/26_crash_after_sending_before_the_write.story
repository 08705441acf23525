# 26, a leader that sent its blocks and lost its power before it had written them (thesis §10.2.1).
world tier=b seed=26 nodes=3 observers=0 seconds=18
load clients=4 mean_s=0.4
at 2 slow leader 100ms for 3
at 4 crash leader for 1 in-write
at 8 slow leader 100ms for 3
at 10 crash leader for 1 in-write
expect leader_changes >= 3
