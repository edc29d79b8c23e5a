"""The pure core: decisions and protocol state without I/O, clock or hidden randomness."""
