"""The public door: few names, in one order, documented, and the package behind them untouched."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import petzval

NAMES = [name for name in petzval.__all__ if name != "__version__"]


def test_the_door_has_about_ten_names_in_the_order_of_its_table() -> None:
    assert list(petzval._HOMES) == NAMES
    assert 8 <= len(NAMES) <= 12
    assert dir(petzval) == sorted(petzval.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(petzval, name)
    if callable(value):
        assert len((inspect.getdoc(value) or "").split()) >= 4


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'draw'"):
        petzval.draw  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def test_type_checkers_see_the_names_that_the_table_loads() -> None:
    source = inspect.getsource(petzval)
    seen = re.findall(r"^    from (\S+) import (\w+) as \2$", source, re.MULTILINE)
    assert {name: home for home, name in seen} == petzval._HOMES


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, petzval\nassert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
