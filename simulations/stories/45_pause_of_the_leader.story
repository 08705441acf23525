# 45, a leader sleeps for several election time-outs with reads under way (etcd #20418): when it wakes it answers no read
# with the state that it remembers.
world tier=b seed=45 nodes=3 observers=0 seconds=24
load clients=4 mean_s=0.4
at 3 pause leader for 4
at 9 pause leader for 1
at 12 drift leader 0.001
at 14 pause leader for 6
expect leader_changes >= 2
expect read >= 20
