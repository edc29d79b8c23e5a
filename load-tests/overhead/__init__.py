"""The parts of `make bench-overhead`: one file per measure, and what they share."""
