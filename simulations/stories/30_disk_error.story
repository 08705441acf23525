# 30, fsync fails once (fsyncgate, 2018): the process ends, and no later write counts as if the first had been made.
world tier=b seed=30 nodes=3 observers=1 seconds=20
load clients=3 mean_s=0.5
at 3 disk-error leader for 2
at 8 disk-error follower for 1
at 12 disk-error 3 for 1
expect disk-error == 3
expect failed == 3
