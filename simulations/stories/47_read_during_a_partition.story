# 47, reads at both sides of a partition (thesis §6.4): an answer is the newest state, or there is none.
world tier=b seed=48 nodes=3 observers=0 seconds=20
load clients=5 mean_s=0.4
at 3 cut both leader for 5
at 10 cut out leader for 4
at 15 cut in leader for 4
expect read >= 20
