# 25, the leader's own write (thesis §10.2.1): a leader whose disk is slow sends first and counts itself last; the others
# commit without it.
world tier=b seed=25 nodes=3 observers=0 seconds=14
load clients=3 mean_s=0.2
at 3 slow leader 500ms for 8
expect leader_changes == 1
expect acked >= 30
