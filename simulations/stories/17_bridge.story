# 17, two halves that one node joins: there is a leader, and writes go on (OmniPaxos, 2023, names the case).
world tier=a seed=17 nodes=5 observers=0 seconds=24
load clients=3 mean_s=0.3
at 3 bridge 2 for 8
at 13 bridge leader for 8
expect leader_changes <= 6
expect acked >= 20
