# 45, clocks jump by an hour (etcd #20418): no election and no read depends on what time it is. A follower whose clock
# was an hour behind must follow again when it is put right (it once did not, for the rest of the term).
world tier=a seed=46 nodes=3 observers=0 seconds=24
load clients=4 mean_s=0.2
at 3 clock follower -3600000ms
at 8 clock leader +3000ms
at 12 drift leader 0.001
at 16 crash leader for 1
expect acked >= 20
