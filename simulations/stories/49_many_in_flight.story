# 49, a change of the leader with hundreds of requests under way: each gets a truthful outcome or none.
world tier=a seed=50 nodes=3 observers=0 seconds=14
load clients=300 mean_s=1.5
at 4 crash leader for 1
at 8 cut both leader for 3
expect leader_changes >= 2
expect acked >= 300
