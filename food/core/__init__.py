"""The replication protocol: pure and deterministic.

Messages and time in, effects out. Nothing below this package reads a clock, opens a socket or a file, starts
a thread or draws a random number; tests/test_layers.py holds it to that.
"""
