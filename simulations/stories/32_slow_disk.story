# 32, a slow disk (8 ms, then stalls of 2 s) of a leader: heartbeats go on, and nobody calls an election.
world tier=b seed=32 nodes=3 observers=0 seconds=20
load clients=3 mean_s=0.3
at 2 slow leader 8ms for 6
at 9 slow leader 2000ms for 8
expect leader_changes == 1
