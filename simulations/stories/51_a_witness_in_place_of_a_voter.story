# 51, three voters and a witness (ledger.md 1.3): with a voter away the witness's vote makes the quorum of three, with
# the witness away the voters' do; with both away blocks are ordered, and become final when one of them is back.
world tier=b seed=51 nodes=3 witnesses=1 observers=1 seconds=30
load clients=4 mean_s=0.5
at 3 crash 1 for 6
at 12 cut both 3 for 6
at 20 crash 2 for 6
at 22 cut both 3 for 3
expect acked >= 20
