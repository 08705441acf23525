# 48, answers are lost and clients ask again through another node: each transaction is applied once.
world tier=b seed=49 nodes=3 observers=1 seconds=24
quality loss=0.2
load clients=5 mean_s=0.4
at 3 crash leader for 1 in-write
at 7 cut out leader for 3
at 12 blackout for 1
at 17 crash leader for 1 in-write
expect unknown >= 1
expect acked >= 30
