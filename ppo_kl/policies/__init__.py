"""Observation -> distribution and value."""
