"""Computes prompts into KV and hands the blocks over."""
