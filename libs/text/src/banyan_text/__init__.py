"""Text to tokens and back: templates, incremental detokenising, stop strings."""
