# 18, a link that flaps about as often as heartbeats come: terms do not grow.
world tier=b seed=18 nodes=3 observers=0 seconds=18
load clients=3 mean_s=0.3
at 3 flap leader follower every 0.1 for 6
at 10 flap leader follower every 0.05 for 5
expect leader_changes <= 2
expect acked >= 20
