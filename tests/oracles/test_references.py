"""Functions of one number against mpmath, at the ends of each dtype's range."""

from __future__ import annotations

import pytest
from mpmath import mp
from oracles.references import REFERENCES, Reference, faults


def _name(item: Reference) -> str:
    return f"{item.op} {dict(item.options) or ''} {item.second or ''}".strip()


@pytest.mark.parametrize("reference", REFERENCES, ids=[_name(item) for item in REFERENCES])
def test_the_reference_lies_in_the_interval(reference):
    found = [fault for dtype in reference.dtypes for fault in faults(reference, dtype)]
    assert not found, "\n".join(found[:10])


@pytest.mark.parametrize(
    "wrong",
    [
        Reference("exp", lambda x: mp.exp(min(x, 100)) * (1 + mp.mpf(2) ** -12)),
        Reference("log", lambda x: mp.log(abs(x) + mp.mpf(2) ** -30)),
        Reference("sqrt", lambda x: mp.sqrt(abs(x)) + mp.mpf(2) ** -20),
    ],
    ids=["a relative error", "no pole", "an absolute error"],
)
def test_a_wrong_reference_is_told_apart(wrong):
    assert any(fault for dtype in wrong.dtypes for fault in faults(wrong, dtype))
