"""Checks of content: a plug-in that may refuse a prompt before it is drawn, or a picture after.

None is built in: what is acceptable is for whoever runs the server to say. A check is any object
with the two methods of `ContentCheck`; a package offers one under the entry point group
`petzval.content_checks`, and `petzval serve --check NAME` uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from PIL import Image

from petzval.errors import ServerError
from petzval.server.errors import ApiError

GROUP = "petzval.content_checks"


@runtime_checkable
class ContentCheck(Protocol):
    """Refuses what should not be drawn. Called from several threads."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> str | None:
        """Why this must not be drawn, in words for whoever asked; None where it may be."""
        ...

    def check_picture(self, picture: Image.Image, prompt: str) -> str | None:
        """Why this must not be shown; None where it may be. It is not kept then."""
        ...


def load_checks(names: Sequence[str]) -> tuple[ContentCheck, ...]:
    """The checks of these names, made by calling their entry points.

    Raises:
        ServerError: no installed package offers one, or it is no check.
    """
    offered = {point.name: point for point in entry_points(group=GROUP)}
    checks: list[ContentCheck] = []
    for name in names:
        if name not in offered:
            known = ", ".join(offered) or "none"
            raise ServerError(
                f"no installed package offers the content check {name[:80]!r}",
                f"offered are: {known}",
            )
        check: object = offered[name].load()()
        if not isinstance(check, ContentCheck):
            raise ServerError(
                f"{name} is no content check", "it needs check_prompt and check_picture"
            )
        checks.append(check)
    return tuple(checks)


def refuse_prompt(checks: Sequence[ContentCheck], prompt: str, negative_prompt: str) -> None:
    """Refuse a job before it is accepted.

    Raises:
        ApiError: 400, with the check's reason.
    """
    for check in checks:
        reason = check.check_prompt(prompt, negative_prompt)
        if reason is not None:
            raise _refused(reason, "prompt")


def refuse_picture(checks: Sequence[ContentCheck], picture: Image.Image, prompt: str) -> None:
    """Refuse a picture before anybody sees it.

    Raises:
        ApiError: with the check's reason.
    """
    for check in checks:
        reason = check.check_picture(picture, prompt)
        if reason is not None:
            raise _refused(reason, None)


def _refused(reason: str, param: str | None) -> ApiError:
    return ApiError(400, reason, code="content_policy_violation", param=param)
