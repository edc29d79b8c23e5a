"""The compiled helper: products and attention that torch has no fast CPU code for.

It is C++ without torch's headers, called through ctypes, and optional: `build` compiles it in the
background at first use, `native` calls it, and whoever calls has a way without it.
"""
