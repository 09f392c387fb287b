"""Captions from any endpoint that speaks OpenAI's chat protocol: hosted, or vLLM in the next room.

Where the endpoint is, which model is asked and with which key comes from the environment alone:
OPENAI_BASE_URL, PETZVAL_CAPTION_MODEL and OPENAI_API_KEY. The key is in no log, file or message.

Attempts are repeated by this file and not by the client, for three reasons: a "slow down" heard by
one of many must slow down all; waits longer than a minute are honoured; and each attempt counts in
the budget. An attempt that ended in silence may have been worked on, and is counted as if it were.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import math
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import mktime_tz, parsedate_tz
from time import time
from typing import TYPE_CHECKING, Any

from PIL import Image

from petzval.config import check_ranges, setting
from petzval.data.corpus.answers import Judged, judge, one_line
from petzval.data.corpus.budget import Budget, BudgetSpent
from petzval.data.corpus.captioner import Answer, Length
from petzval.data.decode import Decoded, Pixels
from petzval.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletion

# What the paper's prompt asks for (Lens paper, appendix E.1), in our words.
_WHAT_TO_SAY = (
    "Name every notable object with what can be seen of it: colour, material, texture, shape,"
    " posture, expression. Say how many there are wherever they can be counted, where they are in"
    " the frame, and how they stand to each other and what they do. Describe the background and"
    " the light, and say whether it is a photograph, a painting, a rendering or something else."
    " If there is readable text, quote it exactly, in double quotes and in its own language and"
    " script; if there is none, do not mention text at all. Call landmarks, public figures,"
    " fictional characters, works and dishes by name when you recognise them with confidence."
    " Report only what is visible; no guesses about what lies outside the frame, no judgement of"
    " the picture's quality, no greeting and no heading."
)
INSTRUCTIONS: Mapping[Length, str] = {
    "dense": (
        "Describe this picture in English, so exactly that an artist who never saw it could draw"
        " it again. Write a single paragraph of fewer than 500 words. " + _WHAT_TO_SAY
    ),
    "brief": (
        "Describe this picture in English in one sentence of at most 20 words: the main subject,"
        " what it does or is like, and where. Quote readable text only if it is the subject, and"
        " never remark that there is none. Answer with the sentence alone."
    ),
}

_SHARED_ERRORS = frozenset({401, 403, 404})
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_FILTERED = frozenset({"content_filter", "content_policy_violation"})
_NO_KEY = "none"
_LONGEST_WAIT = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointAddress:
    """Where to ask, whom, and with which key; `repr` leaves the key out."""

    base_url: str
    model: str
    api_key: str = field(repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> EndpointAddress:
        """The address that the environment names.

        Raises:
            DataError: a variable is missing or is no address.
        """
        values = os.environ if environment is None else environment
        url = values.get("OPENAI_BASE_URL", "").strip()
        key = values.get("OPENAI_API_KEY", "").strip()
        model = values.get("PETZVAL_CAPTION_MODEL", "").strip()
        if not model:
            raise DataError(
                "no caption model is named",
                "set PETZVAL_CAPTION_MODEL, and OPENAI_BASE_URL or OPENAI_API_KEY",
            )
        if not url and not key:
            raise DataError(
                "no endpoint to ask for captions",
                "set OPENAI_BASE_URL, such as http://127.0.0.1:8000/v1, or OPENAI_API_KEY",
            )
        if url and not url.startswith(("http://", "https://")):
            raise DataError(
                "OPENAI_BASE_URL is not an address", "it starts with http:// or https://"
            )
        url = url or "https://api.openai.com/v1"
        return cls(base_url=url, model=model, api_key=key or _NO_KEY)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """How an endpoint is asked.

    Attributes:
        max_side: longer side of the picture that is sent, in pixels; larger ones are scaled down.
        jpeg_quality: of the picture that is sent.
        max_words: longer captions end with their last sentence within it.
        max_completion_tokens: at which the model is stopped.
        timeout: seconds for one attempt from its start to the last byte of its answer.
        max_attempts: for one picture in one run.
        backoff: seconds before the second attempt; doubled before each further one, up to a
            minute, and shortened by a random part of up to a half.
        max_failures: pictures in a row without an answer, after which nothing more is asked.
    """

    max_side: int = setting(768, minimum=64, maximum=4096)
    jpeg_quality: int = setting(85, minimum=20, maximum=100)
    max_words: int = setting(500, minimum=5)
    max_completion_tokens: int = setting(900, minimum=16)
    timeout: float = setting(120.0, minimum=0.01)
    max_attempts: int = setting(6, minimum=1, maximum=100)
    backoff: float = setting(1.0, minimum=0)
    max_failures: int = setting(20, minimum=1)

    def __post_init__(self) -> None:
        check_ranges(self)


class _Again(Exception):
    """An attempt came to nothing and another may not.

    Args:
        reason: one line.
        wait: seconds that the endpoint asks for.
        for_all: whether it has too much to do, so that everybody had better wait.
        perhaps_paid: whether it may have worked all the same.
    """

    def __init__(
        self,
        reason: str,
        *,
        wait: float = 0.0,
        for_all: bool = False,
        perhaps_paid: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait
        self.for_all, self.perhaps_paid = for_all, perhaps_paid


class EndpointCaptioner:
    """Asks an endpoint.

    Args:
        address: where.
        settings: how.
        budget: what may be spent; without limits by default.

    Raises:
        MissingExtraError: the package openai is not installed.
    """

    needs_pictures = True

    def __init__(
        self,
        address: EndpointAddress,
        settings: EndpointSettings | None = None,
        budget: Budget | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingExtraError("openai", "data") from error
        self.model = address.model
        self.settings = settings or EndpointSettings()
        self.budget = budget or Budget()
        self._address = address
        self._client = openai.AsyncOpenAI(
            base_url=address.base_url,
            api_key=address.api_key,
            timeout=self.settings.timeout,
            max_retries=0,
        )
        self._not_before = 0.0
        self._failures_in_a_row = 0

    def instruction(self, length: Length) -> str:
        """What the model is told; see `INSTRUCTIONS`."""
        return INSTRUCTIONS[length]

    async def describe(
        self, row: Mapping[str, Any], picture: Decoded | None, length: Length
    ) -> Answer:
        assert picture is not None
        url = await asyncio.to_thread(data_url, picture.pixels, self.settings)
        spent, reason, not_before = (0, 0), "", 0.0
        for attempt in range(self.settings.max_attempts):
            await self._wait_until(max(not_before, self._not_before))
            try:
                reserved = await self.budget.reserve(self.settings.max_completion_tokens)
            except BudgetSpent:
                if spent == (0, 0):
                    raise
                # What was paid for in vain has to be known to the next run; the next question
                # hears that the budget is spent.
                reason = f"{reason}; the budget allows no further attempt"
                break
            used, counted, judged = (0, 0), False, None
            try:
                judged, usage = await self._attempt(row["id"], url, length)
                used, counted = usage or reserved, usage is not None
            except _Again as again:
                used, reason = reserved if again.perhaps_paid else (0, 0), again.reason
                not_before = self._time_of_next(attempt, again)
            finally:
                await self.budget.settle(reserved, used, counted=counted)
            spent = spent[0] + used[0], spent[1] + used[1]
            if judged is not None:
                if judged.status == "rejected":
                    self._count_failure(judged.reason)
                else:
                    self._failures_in_a_row = 0
                return Answer(judged=judged, prompt_tokens=spent[0], completion_tokens=spent[1])
        self._count_failure(reason)
        failed = Judged(status="failed", reason=reason)
        return Answer(judged=failed, prompt_tokens=spent[0], completion_tokens=spent[1])

    async def close(self) -> None:
        """Close connections."""
        await self._client.close()

    async def _attempt(
        self, picture_id: str, url: str, length: Length
    ) -> tuple[Judged, tuple[int, int] | None]:
        """One question: what came of it, and the tokens it took if the endpoint says."""
        import openai

        try:
            async with asyncio.timeout(self.settings.timeout):
                completion = await self._ask(picture_id, url, length)
        except (TimeoutError, openai.APITimeoutError) as error:
            late = f"no whole answer within {self.settings.timeout:g} s"
            raise _Again(late, perhaps_paid=True) from error
        except openai.APIStatusError as error:
            return self._judge_status(error), (0, 0)
        except openai.APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            raise _Again(f"the connection failed ({cause})", perhaps_paid=True) from error
        except (openai.APIError, ValueError) as error:
            raise _Again("the answer is not JSON", perhaps_paid=True) from error
        return self._judge(completion), usage_of(completion)

    async def _ask(self, picture_id: str, url: str, length: Length) -> ChatCompletion:
        instruction = INSTRUCTIONS[length]
        # Endpoints that know the header answer the same question once, and charge once.
        words = "\0".join((picture_id, self.model, instruction))
        return await self._client.chat.completions.create(
            model=self.model,
            max_tokens=self.settings.max_completion_tokens,
            extra_headers={"Idempotency-Key": hashlib.sha256(words.encode()).hexdigest()},
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": instruction},
                        {"type": "image_url", "image_url": {"url": url}},
                    ],
                }
            ],
        )

    def _judge(self, completion: object) -> Judged:
        # The client builds its types without checking them: nothing is sure to be there.
        choices: Any = getattr(completion, "choices", None)
        choice: Any = choices[0] if isinstance(choices, list) and choices else None
        message: Any = getattr(choice, "message", None)
        if message is None:
            raise _Again("the answer is no chat completion", perhaps_paid=True)
        finish: Any = getattr(choice, "finish_reason", None)
        content: Any = getattr(message, "content", None)
        refusal: Any = getattr(message, "refusal", None)
        return judge(
            content if isinstance(content, str) else "",
            max_words=self.settings.max_words,
            cut_off=finish == "length",
            refusal=refusal if isinstance(refusal, str) else "",
            filtered=finish == "content_filter",
        )

    def _judge_status(self, error: openai.APIStatusError) -> Judged:
        """What an error status means: for this picture, for a while, or for all."""
        status, said = error.status_code, self._without_key(_message_of(error))
        if status in _SHARED_ERRORS or error.code in _NO_CREDIT:
            # Endpoints repeat the key in these messages, whole or in part: they stay out.
            why = {401: "the key is not accepted", 403: "no permission", 404: "not found"}
            raise DataError(
                f"the endpoint refuses to caption with {self.model!r}: "
                + why.get(status, "no credit is left"),
                "check OPENAI_BASE_URL, OPENAI_API_KEY and PETZVAL_CAPTION_MODEL; what was answered"
                " so far is kept",
            ) from None
        if status in {408, 409, 425, 429} or status >= 500:
            wait = wait_asked(error.response.headers)
            busy = status in {429, 503}
            raise _Again(f"status {status}: {said}", wait=wait, for_all=busy) from error
        if error.code in _FILTERED:
            return Judged(status="refusal", reason=f"{error.code}: {said}")
        return Judged(status="rejected", reason=f"status {status}: {said}")

    def _without_key(self, text: str) -> str:
        key = self._address.api_key
        return (text if key == _NO_KEY else text.replace(key, "[key]"))[:200]

    def _time_of_next(self, attempt: int, again: _Again) -> float:
        """When to try again, on the loop's clock."""
        delay = min(60.0, self.settings.backoff * 2**attempt) * random.uniform(0.5, 1)
        time_of_next = asyncio.get_running_loop().time() + max(delay, again.wait)
        if again.for_all:
            self._not_before = max(self._not_before, time_of_next)
        return time_of_next

    async def _wait_until(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - asyncio.get_running_loop().time()))

    def _count_failure(self, reason: str) -> None:
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self.settings.max_failures:
            raise DataError(
                f"the endpoint gave no answer for {self._failures_in_a_row} pictures in a row;"
                f" the last time: {reason}",
                "see that it is up, then run the same command again: it goes on",
            )


def data_url(pixels: Pixels, settings: EndpointSettings) -> str:
    """A picture as a JPEG in a data URL, scaled down to the size that is sent."""
    image = Image.fromarray(pixels)
    scale = settings.max_side / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=settings.jpeg_quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def usage_of(completion: object) -> tuple[int, int] | None:
    """Tokens of the prompt and of the answer; None where the endpoint does not say."""
    usage: Any = getattr(completion, "usage", None)
    counts = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
    match counts:
        case (int(prompt), int(written)) if prompt >= 0 and written >= 0:
            return prompt, written
        case _:
            return None


def wait_asked(headers: Mapping[str, str], now: float | None = None) -> float:
    """Seconds that a Retry-After header asks for, 0 without one, at most ten minutes."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        date = parsedate_tz(value)
        seconds = 0.0 if date is None else mktime_tz(date) - (time() if now is None else now)
    return min(max(seconds, 0.0), _LONGEST_WAIT) if math.isfinite(seconds) else 0.0


def _message_of(error: openai.APIStatusError) -> str:
    body: Any = error.body
    said = body.get("message") if isinstance(body, dict) else None
    return one_line(said) if isinstance(said, str) else "no reason is given"
