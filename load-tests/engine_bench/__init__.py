"""The parts of `make bench-engine`: one file per noun, see `load-tests/README.md`."""
