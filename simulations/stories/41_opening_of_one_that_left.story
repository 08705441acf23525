# 41: everybody crashes while a removal is being committed. One knows that it is and, started anew, no longer knows who was a
# voter before; the others elect the one that leaves, whose opening it then refused for good (found by seed 100012).
world tier=a seed=100012 nodes=5 observers=0 seconds=60 settle=30
at 0 quality delay_ms=27.304 duplicate=0.082
at 3.459 add-voter 0
at 13.857 cut both 0 4 for 2.82
at 19.413 cut in leader for 6.082
at 26.197 crash 1 for 0.977 in-write
at 26.1976 crash 4 for 2.012
at 26.2017 crash 3 for 3.033
at 26.2027 crash 0 for 3.35
at 26.2045 crash 2 for 3.376
at 39.184 disk-full 2 for 2.768
at 46.916 remove-voter 1
at 47.082 crash 4 for 0.952 in-write
at 47.0861 crash 2 for 1.224
at 47.089 crash 1 for 1.906
at 47.0925 crash 0 for 2.249
at 47.0962 crash 3 for 2.305
expect commits >= 100
