"""What every test may rely on, however the tests were started."""

import signal

# A shell starts background jobs with interrupts ignored, and children inherit that: what is to be interrupted here must hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
