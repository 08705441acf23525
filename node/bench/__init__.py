"""`carechain bench`: what this machine makes of the product's own paths, beside what its parts alone can do.

    consensus    three voters, three processes (`voter`), loopback, fsync: signed transactions ordered to final
    storage      one node: seal and store durably, read back and verify
    ingredients  the machine: signatures, hashes, fsync, encoding, a round trip over libp2p

A figure is never a pass or a fail of the program: `met` says how it stands against its target, on this machine, today.
"""
