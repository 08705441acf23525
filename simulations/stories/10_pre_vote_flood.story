# 10, pre-votes of a former leader (hashicorp/raft #609): it hears nobody and goes on asking; the others elect all the same.
world tier=a seed=10 nodes=5 observers=0 seconds=20
at 3 cut in leader for 12
at 8 cut in leader for 6
expect leader_changes >= 2
expect leader_changes <= 8
