# 8, disruptive rejoin (thesis §9.6): a voter that was cut off for long comes back without a new term or another leader.
world tier=b seed=8 nodes=3 observers=0 seconds=16
load clients=3 mean_s=0.3
at 3 cut both follower for 8
expect leader_changes == 1
