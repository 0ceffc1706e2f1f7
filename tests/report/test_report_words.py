from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from report import samples

from ranum.report import words
from ranum.report.excerpt import Line, excerpt
from ranum.source import UNKNOWN, Source


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unknown"),
        (math.nan, "NaN"),
        (math.inf, "Inf"),
        (-math.inf, "-Inf"),
        (0.0, "0"),
        (12.0, "12"),
        (2502.4, "2502"),
        (0.0034, "0.0034"),
        (3.4028e38, "3.4e38"),
        (1.23456e-9, "1.23e-9"),
        (1e7, "1e7"),
    ],
)
def test_number(value, text):
    assert words.number(value) == text


def test_control_characters_lose_their_power():
    assert words.clean("a\x1b[31mb\x00\udc80") == "a�[31mb��"
    assert words.clean("\tx = 'é漢'") == "    x = 'é漢'"


@pytest.mark.parametrize(
    ("names", "text"),
    [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c", "d", "e"], "a, b, c and 2 more")],
)
def test_listed(names, text):
    assert words.listed(names) == text


def test_repeats_of_one_expression_are_one_group(tmp_path):
    source = samples.source_of(samples.write_code(tmp_path), samples.LOG)
    analysis = samples.analysis(
        tmp_path / "model.py",
        defects=(
            samples.defect(source, certain=False, node=1),
            samples.defect(source, certain=True, node=2),
            samples.defect(UNKNOWN, certain=False, node=3),
            samples.defect(UNKNOWN, certain=False, node=4),
        ),
    )
    certain, possible = words.grouped(analysis)
    assert [(defect.node, times) for defect, times in certain] == [(2, 2)]
    assert [(defect.node, times) for defect, times in possible] == [(3, 1), (4, 1)]


def test_an_excerpt_marks_characters_not_bytes(tmp_path):
    file = samples.write_code(tmp_path, "if True:\n\tgröße = 'é' + log(größe)\n")
    (line,) = excerpt(samples.source_of(file, "log(größe)"))
    assert line.parts == ("größe = 'é' + ", "log(größe)", "")


def test_an_excerpt_marks_every_line_of_a_long_expression(tmp_path):
    file = samples.write_code(tmp_path, "y = f(\n    a,\n    b,\n) + 1\nz = 2\n")
    source = Source(file=str(file), line=1, end_line=4, column=4, end_column=1)
    lines = excerpt(source, around=1)
    assert [line.parts[1] for line in lines] == ["f(", "a,", "b,", ")", ""]


@pytest.mark.parametrize(
    "source",
    [
        UNKNOWN,
        Source(file="/does/not/exist.py", line=3, end_line=3, column=0, end_column=4),
        Source(file="<stdin>", line=3, end_line=3, column=0, end_column=4),
    ],
)
def test_no_excerpt_without_source(source):
    assert excerpt(source, around=2) == ()


@pytest.mark.parametrize(("start", "end"), [(0, 5), (40, 50), (150, 160), (10, 190)])
def test_a_window_shows_the_start_of_the_mark(start, end):
    text = "".join(chr(97 + i % 26) for i in range(200))
    line = Line(1, text, start, end).window(60)
    assert len(line.text) <= 60
    assert line.parts[1]
    assert text[start:end].startswith(line.parts[1].removesuffix("..."))


def test_settings_leave_out_what_there_is_nothing_to_choose_for():
    repair = SimpleNamespace(
        faulty={"learning_rate": 1.0, "normalization": None, "extra": None},
        patch={"extra": (None, 2)},
    )
    assert words.settings(repair) == {"learning_rate": 1.0, "extra": None}
