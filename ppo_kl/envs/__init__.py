"""Environments: the only place that knows Gymnasium's vector API."""
