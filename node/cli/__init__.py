"""The command line `carechain`, one noun a file. The contract is the table of commands in the README.

`main` collects the commands and turns every error into a sentence and an exit code; `session` holds what all commands
share (`--home`, `--json`, the passphrase); `output` prints; `client` talks to the daemon over the socket of its home.
Only `init`, `genesis`, `run`, `version`, `demo` and `bench` work without a daemon. Modules here import nothing of the
network, of databases or of keys at their head, so that `--help` answers at once.
"""
