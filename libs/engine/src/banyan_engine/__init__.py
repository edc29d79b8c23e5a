"""The only torch in the mesh: model, attention, paged KV, sampler and the runner over them."""

import os

# torch keeps what oneDNN compiled for a product, and keeps it again itself, for 1,024 shapes each:
# every length of a chunk is a shape of each product, some 0.6 MB. Both read this at first use.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")
