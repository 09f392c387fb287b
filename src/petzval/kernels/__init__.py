"""Arithmetic: the slow truth, the fast paths beside it, and which of them runs here."""
