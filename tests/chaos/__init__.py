"""Chaos from outside: the real product, a ledger that plays the provider, kills at every commit, every send and every process. `make chaos`."""
