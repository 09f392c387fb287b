"""Experiments, and the log of what came out (LOG.md)."""
