"""Measure a model: prompts, pictures, verdicts, and a table with its uncertainty.

Generate once, score as often as you like: `questions` says what is asked, `store` keeps pictures
under the hash of everything they depend on, `drawing` fills it, `verdicts` writes one line a
picture, `statistics` and `summary` turn lines into shares with confidence intervals, `report`
writes them down, `run` does it all. `real_scenes` checks the scorer itself on pictures that are
right, and on right pictures under wrong prompts.
"""

from __future__ import annotations
