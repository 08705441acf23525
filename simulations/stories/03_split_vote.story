# 3, split votes (Raft §5.2): four voters get their power back at the same moment, again and again.
world tier=a seed=3 nodes=4 observers=0 seconds=20
at 3 blackout for 0.1
at 7 blackout for 0.1
at 11 blackout for 0.1
at 15 blackout for 0.1
expect leader_changes >= 5
expect leader_changes <= 10
