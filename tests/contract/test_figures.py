"""Figures that a program draws are drawn by it as they are shown."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from docs import mixed_resolution


def test_the_figure_of_mixed_resolutions_is_what_its_program_draws() -> None:
    drawn = mixed_resolution.drawing()
    assert mixed_resolution.PICTURE.read_text(encoding="utf-8") == drawn
    texts = [each.text or "" for each in ElementTree.fromstring(drawn).iter() if each.text]
    assert sum(text.startswith("rank ") for text in texts) == 16
    bucket, packed = (float(re.findall(r"[\d.]+ times", t)[0][:4]) for t in texts if "times" in t)
    assert bucket > packed + 0.05
