from __future__ import annotations

import io
import math
import sys

import pytest
from report import samples
from rich.console import Console

from ranum.analysis.result import Advice
from ranum.guards.types import History
from ranum.report import Story
from ranum.source import Source


def told(width=80, tell=None, **console):
    out = io.StringIO()
    tell(Story(Console(file=out, width=width, **console)))
    return out.getvalue()


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return samples.write_code(tmp_path)


def whole_story(file):
    history = samples.history(file)

    def tell(story):
        story.analysis(samples.analysis(file), diffs={"model.py:14": samples.PATCH, "x": "+ 1"})
        for finding in history.findings:
            story.finding(finding)
        for incident in history.incidents:
            story.incident(incident)
        story.repair(samples.repair())
        story.end(history, "Trained all 9 epochs.")

    return tell


@pytest.mark.parametrize("width", [40, 80, 120])
def test_lines_fit_and_carry_no_colour_codes_into_a_file(file, width):
    text = told(width, whole_story(file))
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= min(width, 100)
    assert text.endswith("\n")


def test_a_certain_defect_is_told_in_full(file):
    text = told(tell=lambda story: story.analysis(samples.analysis(file)))
    lines = [line.rstrip() for line in text.splitlines()]
    assert "✗ 1 certain defect, 2 possible  2 operators analysed in 140 ms" in lines
    assert "  RN101 log fails for x <= 0  model.py:14" in lines
    code = next(i for i, line in enumerate(lines) if samples.LOG in line)
    assert lines[code + 1].strip() == "^" * len(samples.LOG)
    assert lines[code + 1].index("^") == lines[code].index(samples.LOG)
    for part in ("[0, 1]", "-Inf at 0, NaN below", "head.weight", "14 runs", "log_softmax"):
        assert part in text
    assert text.index("RN101") < text.index("RN103")
    assert "Incomplete: 1 operator" in text


def test_possible_defects_stand_under_the_weights_they_need(file):
    lines = told(100, lambda story: story.analysis(samples.analysis(file))).splitlines()
    first = next(i for i, line in enumerate(lines) if "not proven, with the weights as" in line)
    assert "RN103" in lines[first + 1]
    assert "And, only once weights move beyond the training envelope:" in lines[first + 2]
    assert "RN110" in lines[first + 3]
    assert lines[first + 3].rstrip().endswith("× 4.1e5")


def test_no_defects_is_one_line(file):
    analysis = samples.analysis(file, defects=(), unknowns=())
    text = told(tell=lambda story: story.analysis(analysis))
    assert text == "\n✓ No numerical defect  2 operators analysed in 140 ms\n"


def test_an_incident_names_culprit_action_and_snapshot(file):
    text = told(tell=lambda story: story.incident(samples.incident(file)))
    for part in (
        "Step 132 withheld",
        "The loss is NaN.",
        "log gave -Inf",
        "model.py:14",
        "^^^",
        "Patched the code, went back to step 100",
        "+ return",
    ):
        assert part in text


def test_a_fault_is_told_once_with_its_incident_or_at_the_end(file):
    def tell(story):
        story.finding(samples.finding(132))
        story.finding(samples.finding(140, message="The gradient is Inf."))
        story.incident(samples.incident(file, 132))
        story.end(History())

    text = told(100, tell)
    assert text.count("The loss is NaN.") == 1
    assert "step 140: The gradient is Inf. Nothing was done." in text


def test_repair_shows_changed_values_only(file):
    text = told(tell=lambda story: story.repair(samples.repair()))
    assert "learning_rate" in text
    assert "batch_size" not in text
    assert "2 of 5 values changed" in text
    failed = samples.repair(is_repaired=False, score=math.inf, patch={})
    assert "No configuration found" in told(tell=lambda story: story.repair(failed))


def test_the_end_is_short(file):
    text = told(tell=lambda story: story.end(samples.history(file), "Trained."))
    assert 3 <= len(text.strip().splitlines()) <= 8
    assert "NonFinite → Patched the code, went back to step 100" in text
    assert len(told(tell=lambda story: story.end(History())).strip().splitlines()) == 2


def test_markup_emoji_and_control_characters_stay_text(tmp_path):
    nasty = "x['[bold]'] + log(y, ':smile:[/]')"
    file = samples.write_code(tmp_path, f"{samples.CODE}z = {nasty}\n")
    source = samples.source_of(file, nasty)
    defect = samples.defect(source, bad="x <= [red]0[/red]", consequence="[/nope] \x1b[2J :bomb:")
    analysis = samples.analysis(file, defects=(defect,), unknowns=())
    text = told(120, lambda story: story.analysis(analysis))
    assert nasty in text
    assert "[red]0[/red]" in text
    assert "[/nope] �[2J :bomb:" in text
    assert "\x1b" not in text


def test_an_ascii_console_gets_ascii(file):
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    whole_story(file)(Story(Console(file=out, width=80)))
    out.flush()
    text = raw.getvalue().decode("ascii")
    assert "x 1 certain defect" in text
    assert "NonFinite > Patched" in text


@pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
def test_a_terminal_without_colour_gets_none(file, name):
    environment = {"NO_COLOR": "1", "TERM": "xterm"} if name == "NO_COLOR" else {"TERM": "dumb"}
    text = told(tell=whole_story(file), force_terminal=True, _environ=environment)
    for code in ("\x1b[31m", "\x1b[1;31m", "\x1b[32m"):
        assert code not in text


def test_colour_is_used_where_there_is_some(file):
    text = told(tell=whole_story(file), force_terminal=True, color_system="standard", _environ={})
    assert "\x1b[1;31m" in text


def test_quiet_prints_nothing(file):
    out = io.StringIO()
    whole_story(file)(Story(Console(file=out), quiet=True))
    assert out.getvalue() == ""


def test_bars_of_tqdm_are_taken_away_and_drawn_again(file, monkeypatch):
    tqdm = pytest.importorskip("tqdm")
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    bar = tqdm.tqdm(total=10, file=screen, desc="epoch", ncols=60)
    Story(Console(file=screen, width=80)).finding(samples.warning())
    bar.close()
    before, after = screen.getvalue().split("! DyingReLU")
    assert before.rstrip("\n").endswith("\r")
    assert "epoch" in after


ADVICE = Advice(
    code="RN114",
    rule="LogSpelling",
    op="log",
    node=3,
    source=Source("model.py", 14, 14, 0, 18, lines=("torch.log(1 + <x>)",)),
    loss="1 + x forgets the last digits of a small x",
    rewrite="torch.log1p(x) instead of torch.log(1 + x)",
)


def test_advice_is_told_after_the_defects_with_its_rewriting(file):
    analysis = samples.analysis(file, defects=(), unknowns=(), advice=(ADVICE,))
    text = told(120, lambda story: story.analysis(analysis))
    assert "Advice on precision:" in text
    assert "RN114 model.py:14" in text
    assert "write torch.log1p(x)" in " ".join(text.split())
    assert "Advice" not in told(tell=lambda story: story.analysis(samples.analysis(file)))
