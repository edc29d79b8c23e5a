"""The only home of I/O: each seam to the outside is a protocol with a real side and a twin."""
