"""Measure speed: a whole picture, one technique after the other, against this machine's ceilings.

Networks have random weights of a checkpoint's sizes, made on the spot: arithmetic does not depend
on what was learnt, and nothing has to be downloaded.
"""
