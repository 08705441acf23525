# 42, a voter that was away when it was removed (hashicorp/raft #524): it disturbs nobody and learns of it.
world tier=a seed=42 nodes=4 observers=0 seconds=24
load clients=2 mean_s=0.5
at 3 cut both 3 for 12
at 5 remove-voter 3
expect leader_changes <= 3
