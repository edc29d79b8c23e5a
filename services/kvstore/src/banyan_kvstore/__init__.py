"""Keeps KV blocks by content hash in tiers; writes the index."""
