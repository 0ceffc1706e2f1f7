from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from report import samples

from ranum.analysis.result import Advice
from ranum.errors import ArgumentError
from ranum.guards.types import History, Reading
from ranum.report import write_html
from ranum.report.html import render_html, verdict
from ranum.source import Source

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags are closed in order; collects tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return samples.write_code(tmp_path)


def arguments(file):
    return {
        "everything": {
            "analysis": samples.analysis(file),
            "history": samples.history(file),
            "repair": samples.repair(),
            "diffs": {"model.py:14": samples.PATCH, "Other": samples.PATCH},
            "outcome": "Trained all 9 epochs.",
        },
        "nothing": {},
        "analysis only": {"analysis": samples.analysis(file)},
        "clean analysis": {"analysis": samples.analysis(file, defects=(), unknowns=())},
        "empty analysis": {
            "analysis": samples.analysis(file, defects=(), bounds={}, observed={}, ranges={})
        },
        "empty history": {"history": History()},
        "one reading": {"history": History(readings=(Reading(step=7, loss=1.0, grad_norm=None),))},
        "repair only": {"repair": samples.repair()},
        "repair without a trial": {"repair": samples.repair(trials=())},
        "repair that failed": {
            "repair": samples.repair(
                is_repaired=False,
                score=math.inf,
                patch={},
                trials=(samples.TrialRecord(0, {}, math.inf, "failed"),),
            )
        },
        "all bad": {
            "history": History(
                readings=tuple(
                    Reading(
                        step=step,
                        loss=math.nan,
                        grad_norm=(math.inf, math.nan, -math.inf, 0.0)[step % 4],
                        grad_norms={"w": math.nan},
                    )
                    for step in range(20)
                )
            )
        },
        "huge": {
            "history": History(
                readings=tuple(
                    Reading(
                        step=step,
                        loss=10.0 ** (step * 30 - 300),
                        grad_norm=10.0 ** (step * 30 - 300),
                    )
                    for step in range(20)
                )
            )
        },
    }


@pytest.mark.parametrize(
    "case",
    [
        "everything",
        "nothing",
        "analysis only",
        "clean analysis",
        "empty analysis",
        "empty history",
        "one reading",
        "repair only",
        "repair without a trial",
        "repair that failed",
        "all bad",
        "huge",
    ],
)
def test_a_page_is_well_formed_and_needs_nothing_else(case, file):
    html = render_html(**arguments(file)[case])
    page = Page(html)
    assert html.startswith("<!doctype html>")
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert not re.search(r"https?:|url\(|@import|javascript:", html)
    assert all(name not in {"src", "href", "onclick", "onload"} for name, _ in page.attributes)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert page.tags.count("h1") == 1
    assert page.tags.count("caption") == page.tags.count("table")
    for drawing in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        root = ElementTree.fromstring(drawing)
        assert not re.search(r'["\s(-](nan|inf)[\s",]', drawing.split("<desc")[0])
        if root.get("class") == "figure":
            named = root.get("aria-labelledby").split()
            assert [root.find("title").get("id"), root.find("desc").get("id")] == named


def test_the_page_tells_the_whole_story(file):
    text = Page(render_html(**arguments(file)["everything"])).text
    for part in (
        "Repaired: the run trains with 2 of 5 settings changed.",
        "Trained all 9 epochs.",
        "The loss is NaN.",
        "log gave −Inf",
        "Patched the code, went back to step 100.",
        "named this expression before training (RN101)",
        "To keep the repair, apply this to your source",
        "log fails for x <= 0",
        "2 possible defects, none proven",
        "once weights grow to about 2.5 times their initial size",
        "1 defect with the weights as initialised",
        "1 defect only once weights move beyond the training envelope",
        "left its bounds",
        "OscillatingLoss",
        "my_op (2 times)",
        "learning_rate",
        "Other",
    ):
        assert part in text


def test_source_is_shown_around_the_marked_expression(file):
    html = render_html(history=samples.history(file))
    assert f"<mark>{samples.LOG}</mark>" in html
    assert "onehot = nn.functional.one_hot(labels, 10)" in html


def test_a_diff_with_a_place_stands_with_its_defect(file):
    html = render_html(analysis=samples.analysis(file), diffs={"model.py:14": samples.PATCH})
    assert "Proposed changes" not in html
    assert 'class="row added"' in html


def test_outputs_that_left_their_bounds_come_first(file):
    html = render_html(analysis=samples.analysis(file), history=samples.history(file))
    names = re.findall(r'<th scope="row">([\w.]+)', html)
    assert names[:2] == ["features.0", "features.1"]
    quiet = render_html(analysis=samples.analysis(file))
    assert "left its bounds" not in quiet


def test_everything_foreign_is_escaped(tmp_path):
    evil = "<script>alert('[bold]')</script>&amp;\x1b[2J"
    code = "f(\"<script>&'[bold]'\")"
    file = samples.write_code(tmp_path, f"{samples.CODE}{code}\n")
    source = samples.source_of(file, code, evil)
    analysis = samples.analysis(
        file,
        defects=(samples.defect(source, op=evil, bad=evil, outcome=evil, remedy=evil, code=evil),),
        bounds={evil: samples.bound(0, 1)},
        observed={evil: (0.0, 5.0)},
        ranges={evil: samples.bound(0, 1)},
        notes=(evil,),
    )
    finding = samples.warning(3, message=evil, where=evil, symptom=evil, evidence={evil: 1.0})
    incident = samples.incident(file, finding=finding, detail=evil, action=evil, patch=f"+{evil}")
    history = History(
        readings=tuple(
            replace(reading, grad_norms={evil: 1.0}) for reading in samples.readings(40, ())
        ),
        findings=(finding,),
        incidents=(incident,),
        internal_faults=(evil,),
    )
    repair = samples.repair(
        patch={evil: (evil, evil)},
        faulty={evil: evil},
        trials=(samples.TrialRecord(0, {}, 1.0, "complete", evil),),
    )
    html = render_html(
        analysis=analysis,
        history=history,
        repair=repair,
        diffs={evil: f"-{evil}"},
        title=evil,
        outcome=evil,
    )
    page = Page(html)
    assert "script" not in page.tags
    assert "\x1b" not in html
    assert "<script>alert('[bold]')</script>&amp;" in page.text


def test_ten_thousand_readings_stay_below_a_mebibyte(file):
    history = History(
        readings=samples.readings(10_000, tuple(range(50, 10_000, 97))),
        findings=tuple(samples.finding(step) for step in range(50, 10_000, 97)),
        incidents=tuple(samples.incident(file, step) for step in range(50, 10_000, 97)),
    )
    html = render_html(analysis=samples.analysis(file), history=history)
    assert len(html.encode()) < 1 << 20
    assert html.count('class="number"') == 40
    assert "63 more incidents" in html


@pytest.mark.parametrize(
    ("case", "tone", "text"),
    [
        ("nothing", "calm", "Nothing was recorded."),
        ("empty history", "calm", "Nothing was recorded."),
        ("analysis only", "bad", "1 operator can fail; it is proven."),
        ("one reading", "good", "No faults in 1 step."),
        ("clean analysis", "good", "No numerical defects."),
        ("repair only", "good", "Repaired: the run trains with 2 of 5 settings changed."),
        ("repair that failed", "bad", "No configuration was found that trains."),
    ],
)
def test_verdict(case, tone, text, file):
    given = arguments(file)[case]
    said = verdict(given.get("analysis"), given.get("history", History()), given.get("repair"))
    assert (said.tone, said.text) == (tone, text)


def test_verdict_of_a_run_with_incidents(file):
    history = samples.history(file)
    assert verdict(None, history).text.startswith("2 faults caught")
    stopped = replace(history, incidents=(samples.incident(file, action="stop"),))
    assert verdict(None, stopped).text == "The run was stopped at step 132."


def test_the_file_is_replaced_whole(tmp_path, file, monkeypatch):
    target = tmp_path / "made" / "report.html"
    assert write_html(target) == target
    before = target.read_text(encoding="utf-8")

    def fails(*paths):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="disk full"):
        write_html(target, history=samples.history(file))
    assert target.read_text(encoding="utf-8") == before
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="path must be a file"):
        write_html(tmp_path)


def test_advice_has_a_table_of_its_own_and_its_code_is_escaped(tmp_path):
    advice = Advice(
        code="RN114",
        rule="LogSpelling",
        op="log",
        node=3,
        source=Source("model.py", 14, 14, 0, 18, lines=("torch.log(1 + <b>)",)),
        loss="digits of a small x",
        rewrite="torch.log1p(x)",
    )
    file = samples.write_code(tmp_path)
    page = render_html(analysis=samples.analysis(file, advice=(advice,)))
    assert "Advice on precision" in page
    assert "RN114 model.py:14" in page
    assert "torch.log(1 + &lt;b&gt;)" in page
    Page(page)
    assert "Advice on precision" not in render_html(analysis=samples.analysis(file))
