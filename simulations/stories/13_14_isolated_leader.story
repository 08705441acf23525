# 13 and 14, an isolated leader (thesis §6.2): it commits nothing, steps down, and gives up its tail when it is back.
world tier=b seed=13 nodes=3 observers=1 seconds=16
load clients=4 mean_s=0.5
at 3 cut both leader for 6
expect leader_changes >= 2
expect acked >= 10
