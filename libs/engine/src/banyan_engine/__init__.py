"""The only torch in the mesh: model, attention, paged KV, sampler and the runner over them."""
