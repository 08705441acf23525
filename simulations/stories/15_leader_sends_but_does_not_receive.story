# 15, a leader that sends and does not receive: its heartbeats keep the others quiet, so it must step down by itself.
world tier=b seed=15 nodes=3 observers=0 seconds=16
load clients=3 mean_s=0.3
at 3 cut in leader for 8
expect leader_changes >= 2
