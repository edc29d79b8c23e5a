"""Folds events into SLO figures, goodput and load."""
