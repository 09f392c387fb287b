"""What captioning may spend: tokens, money, or both; never more, however many ask at once.

Before a question is asked, its greatest cost is set aside: all the tokens that the model may write,
and as many for the prompt as the dearest prompt so far took (before the first answer, an estimate).
Once the answer is there, what it really took is put in its place.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from petzval.config import check_ranges, setting
from petzval.errors import DataError

Tokens = tuple[int, int]
"""Of prompts, and of what the model wrote."""

_MARGIN = 1.1
"""Pictures of other shapes may take somewhat more than the dearest so far."""


class BudgetSpent(Exception):
    """Asking once more could exceed the budget: no mistake, and nothing is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetLimits:
    """How much may be spent on a corpus in all, earlier runs included; None is no limit.

    Attributes:
        tokens: of prompts and answers together.
        money: in the currency of the prices.
        prompt_price, completion_price: of a million tokens.
        first_prompt: tokens that a prompt with its picture is taken to have before any was asked.
    """

    tokens: int | None = setting(None, minimum=0)
    money: float | None = setting(None, minimum=0)
    prompt_price: float = setting(0.0, minimum=0)
    completion_price: float = setting(0.0, minimum=0)
    first_prompt: int = setting(2000, minimum=1)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.money is not None and self.prompt_price == self.completion_price == 0:
            raise DataError(
                "a limit in money needs prices",
                "give the prices of a million tokens, of the prompt and of the answer",
            )

    def cost(self, tokens: Tokens) -> float:
        """In the currency of the prices."""
        return (tokens[0] * self.prompt_price + tokens[1] * self.completion_price) / 1e6


class Budget:
    """Keeps count, within one event loop.

    Args:
        limits: none by default.
        spent: by earlier runs.
    """

    def __init__(self, limits: BudgetLimits | None = None, spent: Tokens = (0, 0)) -> None:
        self.limits = limits or BudgetLimits()
        self.spent = spent
        self._set_aside = (0, 0)
        self._prompt = self.limits.first_prompt
        self._changed = asyncio.Condition()

    async def reserve(self, max_completion: int) -> Tokens:
        """Set aside what one question can cost; waits for answers that may leave enough for it.

        Raises:
            BudgetSpent: it could exceed the budget, and no answer is awaited any more.
        """
        async with self._changed:
            while True:
                wanted = (self._prompt, max_completion)
                if self._allows(_sum(_sum(self.spent, self._set_aside), wanted)):
                    self._set_aside = _sum(self._set_aside, wanted)
                    return wanted
                if self._set_aside == (0, 0):
                    raise BudgetSpent
                await self._changed.wait()

    async def settle(self, reserved: Tokens, used: Tokens, *, counted: bool = True) -> None:
        """Put what a question took in the place of what was set aside for it.

        Args:
            reserved: from `reserve`.
            used: what it took.
            counted: whether the endpoint said so; then later questions are expected to be alike.
        """
        async with self._changed:
            self._set_aside = self._set_aside[0] - reserved[0], self._set_aside[1] - reserved[1]
            self.spent = _sum(self.spent, used)
            if counted and used[0]:
                seen = int(used[0] * _MARGIN) + 1
                first = self._prompt == self.limits.first_prompt
                self._prompt = seen if first else max(self._prompt, seen)
            self._changed.notify_all()

    @property
    def cost(self) -> float:
        """Spent so far, in the currency of the prices."""
        return self.limits.cost(self.spent)

    def _allows(self, tokens: Tokens) -> bool:
        limits = self.limits
        if limits.tokens is not None and sum(tokens) > limits.tokens:
            return False
        return limits.money is None or limits.cost(tokens) <= limits.money


def _sum(first: Tokens, second: Tokens) -> Tokens:
    return first[0] + second[0], first[1] + second[1]
