"""Generates in continuous batches and streams tokens."""
