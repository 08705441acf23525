# 16, a leader that receives and cannot send: it is replaced.
world tier=b seed=16 nodes=3 observers=0 seconds=16
load clients=3 mean_s=0.3
at 3 cut out leader for 8
expect leader_changes >= 2
