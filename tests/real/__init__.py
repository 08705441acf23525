"""Real daemon processes under real faults, and the same judge of their clients' history as in the simulation.

links       what joins the daemons: a network namespace for each, or loopback through a proxy for each direction
slow_disk   a throttled block device for one process, or short stops where that cannot be had
daemons     the processes: started, killed, stopped for a while, cut off, healed
clients     threads that ask different daemons at once, and what they were told
faults      what goes wrong when, drawn from a seed
verdict     at the end: nothing lost, nothing twice, one ledger, a history that one copy could have told
torture     all of it as a command: python -m tests.real.torture --minutes 10 --seed 7
"""
