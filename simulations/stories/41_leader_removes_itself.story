# 41, a leader that is to leave (thesis §4.2.2): alone, cut off, and with a crash before the change is committed.
world tier=a seed=41 nodes=5 observers=0 seconds=30
load clients=2 mean_s=0.5
at 3 remove-voter leader
at 8 cut out leader for 3
at 8.1 remove-voter leader
at 14 remove-voter leader
at 14.001 crash leader for 2
expect leader_changes >= 2
