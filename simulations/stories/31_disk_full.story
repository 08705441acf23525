# 31, no space: the voter acknowledges nothing, and goes on when there is space again.
world tier=b seed=31 nodes=3 observers=1 seconds=24
load clients=3 mean_s=0.3
at 3 disk-full follower for 5
at 10 disk-full leader for 4
at 17 disk-full 3 for 3
expect acked >= 20
