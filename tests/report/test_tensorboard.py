from __future__ import annotations

import builtins
import math
import subprocess
import sys
from collections import defaultdict

import pytest
from report import samples

from ranum.errors import MissingExtraError
from ranum.guards.types import ActivationReading, Reading
from ranum.report import Panels, open_writer
from ranum.report.tensorboard import BEYOND, SETTLING


class Recorder:
    """Keeps what is written, as a `SummaryWriter` would."""

    def __init__(self) -> None:
        self.scalars = defaultdict(list)
        self.texts = defaultdict(list)
        self.layouts = []
        self.flushed = 0

    def add_scalar(self, tag, scalar_value, global_step):
        self.scalars[tag].append((global_step, scalar_value))

    def add_text(self, tag, text_string, global_step):
        self.texts[tag].append((global_step, text_string))

    def add_custom_scalars(self, layout):
        self.layouts.append(layout)

    def flush(self):
        self.flushed += 1


def play(writer, file, count=400):
    panels = Panels(writer)
    history = samples.history(file, count)
    panels.analysis(samples.analysis(file))
    for reading in history.readings:
        panels.reading(reading)
        for finding in history.findings:
            if finding.step == reading.step:
                panels.finding(finding)
        for incident in history.incidents:
            if incident.step == reading.step:
                panels.incident(incident)
    panels.repair(samples.repair())
    return writer


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return samples.write_code(tmp_path)


@pytest.fixture
def written(file):
    return play(Recorder(), file)


def test_a_run_has_one_layout_with_a_margin_chart_for_each_bound(written):
    (layout,) = written.layouts
    (bounds,) = [charts for title, charts in layout.items() if "bounds" in title]
    margins = {title: chart[1] for title, chart in bounds.items() if chart[0] == "Margin"}
    assert set(margins) == {
        "features.0: largest element",
        "features.1: largest element",
        "features.2: smallest element",
        "head: largest element",
        "model: largest element",
        "loss: largest element",
    }
    for tags in margins.values():
        steps = {tuple(step for step, _ in written.scalars[tag]) for tag in tags}
        assert len(steps) == 1


def test_infinite_bounds_are_drawn_at_the_edge_and_told_in_words(written):
    assert {value for _, value in written.scalars["ranum/bounds/head/upper"]} == {BEYOND}
    assert {value for _, value in written.scalars["ranum/bounds/head/lower"]} == {-BEYOND}
    ((_, table),) = written.texts["ranum/bounds"]
    assert r"\[-Inf, Inf\] or NaN" in table


def test_outputs_outside_their_bounds_are_counted(written):
    counts = [value for _, value in written.scalars["ranum/outside"]]
    assert (counts[0], counts[-1]) == (1.0, 2.0)


def test_no_series_goes_back(written):
    for series in written.scalars.values():
        steps = [step for step, _ in series]
        assert steps == sorted(steps)


def test_an_incident_is_a_pulse(written):
    points = written.scalars["ranum/incident"]
    assert [step for step, value in points if value == 1.0] == [132, 260]
    assert points[:4] == [(0, 0.0), (131, 0.0), (132, 1.0), (133, 0.0)]
    assert len(points) == 3 + SETTLING + 2 + SETTLING


def test_symptoms_have_a_series_each_with_their_severity(written):
    assert max(value for _, value in written.scalars["ranum/symptom/RN201_NonFinite"]) == 2.0
    assert max(value for _, value in written.scalars["ranum/symptom/RN204_DyingReLU"]) == 1.0


def test_an_incident_is_told_as_a_table_with_its_patch(written):
    step, text = written.texts["ranum/incidents"][0]
    assert step == 132
    for part in ("| Step 132 |", "<code>torch.log(torch.softmax(logits, -1))</code>", "Patched"):
        assert part in text
    assert "    +        return -(onehot * torch.log_softmax(logits, -1))" in text
    assert written.flushed == 2


def test_not_finite_values_stay_in_the_series_as_they_are_only(written):
    assert any(math.isnan(value) for _, value in written.scalars["ranum/grad_norm"])
    for tag, series in written.scalars.items():
        if "log10" in tag or "bounds" in tag:
            assert all(math.isfinite(value) for _, value in series)


@pytest.mark.parametrize(
    ("norm", "drawn"), [(math.inf, BEYOND), (1e300, BEYOND), (100.0, 2.0), (0.0, None)]
)
def test_log10_of_a_gradient_norm(norm, drawn):
    writer = Recorder()
    Panels(writer).reading(Reading(step=3, loss=None, grad_norm=norm))
    expected = [] if drawn is None else [(3, pytest.approx(drawn))]
    assert writer.scalars["ranum/log10/grad_norm"] == expected


def test_without_an_analysis_there_are_no_bounds():
    writer = Recorder()
    panels = Panels(writer)
    seen = {"fc": ActivationReading(lower=0, upper=1)}
    for step in range(3):
        panels.reading(Reading(step=step, loss=1.0, grad_norm=1.0, activations=seen))
    assert len(writer.layouts) == 1
    assert not any("bounds" in tag for tag in writer.scalars)


def test_odd_names_give_valid_tags_and_literal_cells(tmp_path):
    code = "f(a | b, '`*_x_*`', \"<b>\")"
    file = samples.write_code(tmp_path, f"{samples.CODE}{code}\n")
    writer = Recorder()
    panels = Panels(writer)
    reading = Reading(step=1, loss=1.0, grad_norm=1.0, grad_norms={"a b|<c>.w": 1.0})
    panels.reading(reading)
    finding = samples.finding(message="a | b\nc <script>")
    panels.incident(
        samples.incident(
            file,
            finding=finding,
            culprit=samples.Culprit(op="f", phase="forward", source=samples.source_of(file, code)),
        )
    )
    assert "ranum/grad_norm/a_b__c_.w" in writer.scalars
    ((_, text),) = writer.texts["ranum/incidents"]
    assert r"a \| b c &lt;script&gt;" in text
    assert r"<code>f(a \| b, '\`\*\_x\_\*\`', \"&lt;b&gt;\")</code>".replace('\\"', '"') in text


def test_a_real_writer_stores_it_all(file, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    writer = open_writer(tmp_path / "logs")
    play(writer, file).close()
    events = EventAccumulator(str(tmp_path / "logs"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    layout = layout_pb2.Layout()
    (stored,) = events.Tensors("custom_scalars__config__")
    layout.ParseFromString(stored.tensor_proto.string_val[0])
    charts = [chart for category in layout.category for chart in category.chart]
    margins = [chart.margin.series[0] for chart in charts if chart.HasField("margin")]
    tags = events.Tags()["scalars"]
    assert len(margins) == 6
    assert all({line.value, line.lower, line.upper} <= set(tags) for line in margins)
    assert [event.step for event in events.Scalars("ranum/incident") if event.value] == [132, 260]
    assert "ranum/incidents/text_summary" in events.Tags()["tensors"]


def test_a_missing_tensorboard_says_how_to_install_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'ranum\[tensorboard\]'"):
        open_writer(tmp_path)


def test_importing_the_report_does_not_import_tensorboard():
    code = "import sys, ranum.report; print('tensorboard' in sys.modules, 'jinja2' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False False"
