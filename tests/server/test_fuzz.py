"""The API against inputs made from its own description: no 500, and answers as described.

`PETZVAL_FUZZ=1000` makes that many for each operation; the suite makes a few.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import checks

from tests.server.running import Running
from tests.support import PATIENCE

EXAMPLES = int(os.environ.get("PETZVAL_FUZZ", "8"))
_ENDLESS = "/v1/events"
_CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


# schemathesis draws with `random` now and then, which Hypothesis dislikes.
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
def test_every_answer_is_as_described(shared_studio: Running) -> None:
    schema: Any = schemathesis.openapi.from_url(f"{shared_studio.url}/openapi.json")
    operations = [found.ok() for found in schema.exclude(path=_ENDLESS).get_all_operations()]
    assert len(operations) > 15
    for operation in operations:
        _fuzz(operation)


def _fuzz(operation: Any) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(case=operation.as_strategy())
    def every_answer(case: Any) -> None:
        case.call_and_validate(checks=_CHECKS, timeout=PATIENCE)

    try:
        every_answer()
    except SystemError:
        # CPython 3.11 counts the depth of `ast.parse` for all threads together, and the server is
        # one of them (fixed in 3.11.8).
        every_answer()


def test_the_page_of_the_api_tells_of_every_route(shared_studio: Running) -> None:
    text = shared_studio.client.get("/docs").text
    for path in shared_studio.client.get("/openapi.json").json()["paths"]:
        assert path in text
    assert "<script" not in text and "style=" not in text
    assert "petzval.seed" in text
