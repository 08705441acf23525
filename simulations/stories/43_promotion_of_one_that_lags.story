# 43, a learner that lags is not promoted until it has caught up (thesis §4.2.1).
world tier=a seed=43 nodes=3 observers=1 seconds=24
load clients=3 mean_s=0.2
at 2 cut both 3 for 6
at 6 add-voter 3
at 12 add-voter 3
at 16 crash leader for 2
expect acked >= 20
