"""Ablations: many runs that differ by one thing, and what may be said of them."""
