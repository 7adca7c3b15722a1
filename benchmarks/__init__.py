"""How fast the real product is, measured from outside: `make bench` or `python -m benchmarks [name ...]`. Never part of the tests."""
