# 27, a write that ends after its heights were rewritten (etcd, asynchronous storage writes): a slow follower is still
# writing a tail of a leader that was replaced meanwhile.
world tier=a seed=27 nodes=3 observers=0 seconds=20
load clients=4 mean_s=0.1
at 3 slow follower 1500ms for 10
at 4 cut out leader for 2
at 7 cut out leader for 2
at 10 cut out leader for 2
expect leader_changes >= 2
