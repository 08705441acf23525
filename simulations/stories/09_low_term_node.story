# 9, a node left in an old term (etcd #8243): while it is cut off the others change their leader; then the leader dies, and
# the one left behind is needed for a majority.
world tier=a seed=9 nodes=3 observers=0 seconds=24
at 2 cut both 2 for 12
at 4 crash leader for 1
at 8 crash leader for 1
at 14 crash leader for 8
expect leader_changes >= 3
