# 19: a voter loses, in a crash, that a block is committed; it cannot take the change of members above that block before it is
# told again. Its leader believed that it knew, and sent the change with every answer: a storm (found by seed 100335).
world tier=a seed=100335 nodes=5 observers=0 seconds=20 settle=30
load clients=3 mean_s=3
at 0 quality delay_ms=23.212 reorder=0.268
at 9.733 remove-voter 1
at 13.246 crash 2 for 0.013
at 14.055 add-voter 1
expect commits >= 20
