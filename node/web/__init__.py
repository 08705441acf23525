"""The daemon's HTTP side: the record API on the local socket of its home, and /healthz and /metrics on TCP.

`server` binds and serves; `answers` turns results and refusals into responses; `routes_*` hold one noun each. Nothing
here decides anything: a route reads its fields, calls one service (`node.services`) and returns what it says.
"""
