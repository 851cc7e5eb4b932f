"""Prompts: an abnormality's name in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from brgsa.errors import UserError

TEMPLATE = "There is {abnormality}."


def prompts(names: Sequence[str], template: str = TEMPLATE) -> list[str]:
    """One sentence per abnormality name.

    A name in the middle of a sentence loses its capital ("There is pleural effusion."), unless it begins with an acronym.

    Raises:
        UserError: the template lacks the field {abnormality}, or holds another.
    """
    place = template.find("{abnormality}")
    if place < 0 or set("{}") & set(template.replace("{abnormality}", "")):
        raise UserError(
            f"The prompt template {template!r} must hold the field {{abnormality}} and no other braces.",
            code="prompt-template",
            field="template",
            value=template,
        )
    return [template.replace("{abnormality}", name if place == 0 else _lower_first(name)) for name in names]


def _lower_first(name: str) -> str:
    return name if name[1:2].isupper() else name[:1].lower() + name[1:]
