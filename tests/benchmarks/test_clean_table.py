"""The table of the control set: rows kept in a file and told apart by what explains them."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.clean.judge import Alarm, Finding, Row
from benchmarks.clean.show import load, markdown, save

DIVISION = Alarm(key=("RN103", "div", "lib/model.py", "7"), text="x / norm")
FINE = Finding(seconds=0.002, loss=3.0)


def row(**levels: Finding) -> Row:
    findings = {("float32", level): found for level, found in levels.items()}
    return Row(name="net", parameters=1234, operators=56, findings=findings)


def with_alarm(witness: str = "") -> Finding:
    return replace(FINE, alarms=(replace(DIVISION, witness=witness),))


def test_rows_survive_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    odd = replace(with_alarm("NaN"), unknown=("fft x2",), loss=float("inf"))
    first, second = row(initial=FINE, envelope=odd), Row(name="other", error="broke")
    for item in (replace(first, operators=1), first, second):
        save(item, path)
    machines, rows = load(path)
    assert len(machines) == 1
    assert rows == [first, second]
    assert load(tmp_path / "none.jsonl") == ([], [])


def test_a_clean_row_has_its_times_and_sizes():
    text = markdown([row(initial=FINE, envelope=FINE)], ["here"])
    assert text.startswith("here.")
    assert "| net | 1,234 | 56 | 0 | 0 | 0 | 2 | 2 | 0 |" in text
    assert "1 architectures, 56 operators, 1 without an unexplained alarm, 0 incomplete." in text


def test_an_alarm_without_a_witness_stands_out():
    text = markdown([row(initial=FINE, envelope=with_alarm())], [])
    assert "**1 unexplained**" in text
    assert "**no witness**" in text
    assert "Not clean: net." in text


def test_a_witness_is_told_with_its_level():
    text = markdown([row(initial=with_alarm(), envelope=with_alarm("NaN for [0, 0]"))], [])
    assert "1 real |" in text
    assert "float32 initial, float32 envelope: RN103 `div` at model.py:7; " in text
    assert "witness at float32 envelope: NaN for [0, 0]" in text
    assert "Not clean" not in text


def test_weights_of_any_size_have_a_table_of_their_own():
    own = row(initial=FINE, anything=with_alarm())
    text = markdown([own, row(anything=FINE)], [])
    assert own.is_clean
    assert "1 analyses with weights of any size found no defect" in text
    assert "| net | float32 | 1 | 0 | RN103 div |" in text


def test_what_broke_is_not_clean():
    text = markdown([Row(name="net", error="no memory")], [])
    assert "Not clean: net." in text
