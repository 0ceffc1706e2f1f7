"""The page of a rule: what it finds, why it matters, its thresholds; from its docstring."""

from __future__ import annotations

import dataclasses
import inspect

from ranum.errors import ArgumentError


def rules() -> dict[str, type]:
    """Every rule by code: RN1xx numerical defects and advice, RN2xx and RN3xx symptoms."""
    from ranum.analysis import defects, precision
    from ranum.guards import symptoms

    found: dict[str, type] = {**defects.CODES, **precision.CODES, **symptoms.CODES}
    return dict(sorted(found.items()))


def summary(rule: type) -> str:
    """The first line of a rule's page."""
    return inspect.cleandoc(rule.__doc__ or "").partition("\n")[0]


def explain(code: str) -> str:
    """The page of one rule, as plain text.

    Args:
        code: A code, "RN101", or the name of a rule, "LogDomain"; in either case.

    Raises:
        ArgumentError: If there is no such rule; the message lists the codes there are.
    """
    known = rules()
    wanted = code.strip().lower()
    for number, rule in known.items():
        if wanted in (number.lower(), rule.__name__.lower()):
            return _page(number, rule)
    raise ArgumentError(f"code must be one of {', '.join(known)}; got {code!r}.")


def _page(code: str, rule: type) -> str:
    title = f"{code} {rule.__name__}"
    parts = [title, "=" * len(title), "", inspect.cleandoc(rule.__doc__ or "")]
    defaults = _defaults(rule)
    if defaults:
        parts += ["", "Defaults:", *(f"    {name} = {_short(value)}" for name, value in defaults)]
    return "\n".join(parts) + "\n"


def _defaults(rule: type) -> list[tuple[str, object]]:
    if not dataclasses.is_dataclass(rule):
        return []
    return [
        (field.name, field.default)
        for field in dataclasses.fields(rule)
        if field.init and field.default is not dataclasses.MISSING
    ]


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
