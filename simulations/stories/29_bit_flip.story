# 29, a bit flips on a disk: whoever reads the row notices, nobody is served it, and the node comes back whole.
world tier=b seed=29 nodes=3 observers=1 seconds=24
load clients=3 mean_s=0.3
at 6 bit-rot 1
at 8 crash 1 for 1
expect bit-rot == 1
