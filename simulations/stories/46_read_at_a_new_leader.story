# 46, reads at a leader that has committed nothing of its own term yet (thesis §6.4): they wait.
world tier=b seed=47 nodes=3 observers=0 seconds=20
quality delay_ms=40 jitter_ms=20
load clients=5 mean_s=0.4
at 4 crash leader for 1
at 9 transfer follower
at 13 crash leader for 1
expect leader_changes >= 3
expect read >= 20
