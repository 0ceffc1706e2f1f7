"""Replicas that have more or fewer micro-batches than each other, or bad ones."""

from __future__ import annotations

import sys

import pytest
from guard_runs.processes import in_two_processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo over the loopback interface")

# guarded run, run by hand, what the guard says
CASES = [
    ("4/both lose two/bad/all", "4/both lose two", "skip part"),
    ("4/three quarters/bad/all", "4/both lose two", "skip part"),
    ("4/three quarters/bad/uneven", "4/three quarters", "skip part"),
    ("4/three quarters/absent/uneven", "4/three quarters", ""),
    ("4/three quarters/absent/all", "4/both lose two", "skip part"),
    ("4/second has none/bad/uneven", "4/second has none", "skip part"),
    ("4/second has none/nothing called/uneven", "4/second has none", ""),
    ("1/second has none/bad/uneven", "1/second has none", "skip part"),
    ("1/second has none/bad/all", "1/none", "skip"),
    ("1/second has none/absent/uneven", "1/second has none", ""),
    ("1/second has none/nothing called/uneven", "1/second has none", ""),
    ("1/second has none/nothing called/all", "1/none", "skip"),
    ("1/first has none/absent/uneven", "1/first has none", ""),
    ("1/none/absent/uneven", "1/none", ""),
    ("1/none/bad/uneven", "1/none", "skip"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each of the two processes found, run by run."""
    runs = [f"guarded/{run}" for run, _, _ in CASES]
    runs += [f"expected/{run}" for run in dict.fromkeys(by_hand for _, by_hand, _ in CASES)]
    runs += ["sharded guarded", "sharded expected"]
    return in_two_processes("uneven.py", tmp_path_factory.mktemp("processes"), *runs)


@pytest.mark.parametrize(("run", "by_hand", "action"), CASES)
def test_the_step_is_one_on_what_is_left(found, run, by_hand, action):
    first, second = (each[f"guarded/{run}"] for each in found)
    assert first["incidents"] == second["incidents"]
    assert first["norms"] == second["norms"]
    assert [incident[0] for incident in first["incidents"]] == [action] * bool(action)
    for each in found:
        assert each[f"guarded/{run}"]["all"] == each[f"expected/{by_hand}"]["all"]


def test_the_cases_differ(found):
    """What is left out leaves its mark on the weights: the comparison above can fail."""
    by_hand = {case: found[0][f"expected/{case}"]["weights"] for _, case, _ in CASES}
    assert len(set(by_hand.values())) == len(by_hand)


def test_the_incident_says_what_each_had(found):
    details = {
        run: found[0][f"guarded/{run}"]["incidents"][0][2] for run, _, action in CASES if action
    }
    assert details["4/three quarters/bad/all"] == (
        "left micro-batch 1, 3 of the step out; the others weigh more"
    )
    assert details["4/three quarters/bad/uneven"] == (
        "left micro-batch 1, 3 of process 1 out; the others weigh more"
    )
    assert details["1/second has none/bad/uneven"] == (
        "left the batch of process 1 out; the others weigh more"
    )
    assert details["1/second has none/nothing called/all"] == (
        "left the batch out: nothing to train on in the batch of process 1"
    )


def test_shards_leave_out_together_what_is_bad_in_one(found):
    detail = "left micro-batch 1, 3 of the step out; the others weigh more"
    for each in found:
        assert each["sharded guarded"]["incidents"] == [["skip part", 4, detail]]
        assert each["sharded guarded"]["all"] == each["sharded expected"]["all"]


@pytest.mark.slow
def test_fabric(tmp_path):
    pytest.importorskip("lightning_fabric")
    runs = in_two_processes("fabric_several.py", tmp_path, "by_hand", "absent", "bad")
    for each in runs:
        assert each["absent"]["weights"] == each["bad"]["weights"] == each["by_hand"]["weights"]
        assert each["absent"]["incidents"] == []
        assert each["bad"]["incidents"] == ["skip part"]
