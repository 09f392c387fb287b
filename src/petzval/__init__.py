"""Petzval."""
