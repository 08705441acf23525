# 40, two changes of one parent in terms that follow each other (raft-dev 2015, braft #182, NuRaft #67).
world tier=a seed=40 nodes=4 observers=1 seconds=24
load clients=2 mean_s=0.5
at 3 add-voter 4
at 3.001 cut out leader for 3
at 3.5 remove-voter 3
at 8 remove-voter 3
at 8.002 crash leader for 2
at 13 add-voter 3
expect leader_changes >= 2
