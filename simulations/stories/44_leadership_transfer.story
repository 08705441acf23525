# 44, leadership is handed over (thesis §3.10, hashicorp/raft #696): to one that is up to date, that lags, that is dead, to
# itself, twice, and while a link is cut; writes resume each time.
world tier=b seed=44 nodes=3 observers=0 seconds=30
load clients=3 mean_s=0.5
at 2 transfer follower
at 5 slow follower 500ms for 3
at 6 transfer follower
at 10 crash 2 for 3
at 11 transfer 2
at 15 transfer leader
at 17 transfer follower
at 17.01 transfer 2
at 20 transfer follower
at 20.02 cut both leader for 3
expect acked >= 40
