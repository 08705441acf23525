# 20 and 21, answers that arrive after their time (CCF #5991, openraft #1500): links hold what they carry through changes of
# the leader, then deliver all of it at once.
world tier=a seed=20 nodes=3 observers=0 seconds=20
load clients=3 mean_s=0.2
at 3 clog 0 1 for 3
at 3.2 clog 1 0 for 2.5
at 4 clog 2 0 for 3
at 5 crash leader for 1
at 9 clog 1 2 for 3
at 9.5 clog 2 1 for 3
at 10 transfer follower
at 14 clog leader follower for 3
expect leader_changes >= 2
