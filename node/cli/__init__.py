"""The command line: one noun a file. Commands talk to the daemon's local socket, never to LevelDB."""
