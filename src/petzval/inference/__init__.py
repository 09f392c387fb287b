"""Prompt in, picture out: requests, variants, numerics modes, the pipeline, recipes in files."""
