# 11, the old leader is elected again while one node is down (hashicorp/raft #605).
world tier=b seed=11 nodes=3 observers=0 seconds=16
load clients=3 mean_s=0.3
at 2 crash 2
at 5 crash leader for 1
at 9 crash leader for 1
expect leader_changes >= 3
