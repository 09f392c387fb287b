"""Measurements that travel: ways of doing a thing beside their slow reference, in the same run."""
