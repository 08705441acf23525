# 45, a leader sleeps through its replacement and wakes up cut off, so that nobody can tell it (etcd #20418): the one case in
# which an answer without a quorum round is seen to be old.
world tier=b seed=45 nodes=3 observers=0 seconds=26
load clients=4 mean_s=0.3
at 5 cut out leader for 6
at 5.01 pause leader for 5
at 15 cut out leader for 6
at 15.01 pause leader for 5
expect leader_changes >= 3
expect read >= 20
