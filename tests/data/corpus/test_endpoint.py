"""Where the endpoint lies, and how long it asks to be left alone."""

from __future__ import annotations

import pytest

from petzval.data.corpus.endpoint import EndpointAddress, wait_asked
from petzval.errors import DataError
from tests.data.corpus.endpoint import KEY


def test_the_environment_says_where_to_ask() -> None:
    full = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "PETZVAL_CAPTION_MODEL": "seer"}
    assert EndpointAddress.from_environment(full).api_key == "none"
    hosted = EndpointAddress.from_environment(
        {"OPENAI_API_KEY": KEY, "PETZVAL_CAPTION_MODEL": "gpt"}
    )
    assert hosted.base_url.startswith("https://") and KEY not in repr(hosted)
    with pytest.raises(DataError, match="no caption model"):
        EndpointAddress.from_environment({})
    with pytest.raises(DataError, match="no endpoint"):
        EndpointAddress.from_environment({"PETZVAL_CAPTION_MODEL": "seer"})
    with pytest.raises(DataError, match="not an address"):
        EndpointAddress.from_environment({**full, "OPENAI_BASE_URL": "localhost"})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("-1", 0),
        ("1e9", 600),
        ("nan", 0),
        ("soon", 0),
        ("", 0),
        ("Thu, 01 Jan 1970 00:01:10 GMT", 10),
    ],
)
def test_retry_after(value: str, seconds: float) -> None:
    assert wait_asked({"retry-after": value}, now=60.0) == seconds
