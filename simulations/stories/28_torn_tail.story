# 28, a torn tail: a disk says that it has written, and loses the last of it with its power; the voter must not vote with a
# log that forgot what it acknowledged.
world tier=b seed=28 nodes=3 observers=0 seconds=20
load clients=3 mean_s=0.5
at 2 disk-lies 1
at 5 crash 1 for 1
at 10 crash 1 for 1 in-write
expect acked >= 20
