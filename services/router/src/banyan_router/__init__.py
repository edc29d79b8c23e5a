"""Turns block hashes, lengths and class into a placement with reasons."""
