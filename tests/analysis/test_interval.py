"""The interval: what it holds, how it is made, merged, cut and widened."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ranum.analysis.interval import (
    MERGE_ABOVE,
    Interval,
    format_number,
    gamma,
    round_down,
    round_nearest,
    round_up,
    unit_roundoff,
    widen,
)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)
quick = settings(max_examples=60, derandomize=True, deadline=None, database=None)
NAN, INF = math.nan, math.inf


def tensor(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


# --- points --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.bool], ids=str)
def test_point_is_the_data_itself(dtype):
    data = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    interval = Interval.point(data)
    assert interval.is_point
    assert interval.lower is interval.upper
    assert (interval.shape, interval.dtype, interval.may_nan) == ((2, 2), dtype, False)
    assert interval.contains(data)
    assert not interval.contains(1 - data.to(torch.uint8))


def test_point_with_nan_is_anything_there_and_exact_elsewhere():
    interval = Interval.point(tensor(1.0, NAN, -INF))
    assert interval.may_nan
    assert not interval.is_point
    assert interval.lower.tolist() == [1.0, -INF, -INF]
    assert interval.upper.tolist() == [1.0, INF, -INF]


def test_point_forgets_the_gradient_graph():
    assert not Interval.point(torch.ones(2, requires_grad=True)).lower.requires_grad


def test_point_of_complex_numbers_knows_their_size():
    interval = Interval.point(torch.tensor([3 + 4j, 0, 1j]))
    assert not interval.may_nan
    assert interval.low == 0
    assert 5 <= interval.high < 5.001
    assert Interval.point(torch.tensor([complex(INF, 0)])).is_anything


# --- between and full ----------------------------------------------------------------------


def test_between_broadcasts_the_bounds_to_one_layout():
    interval = Interval.between(0.0, torch.ones(3), (2, 3), torch.float32)
    assert interval.lower.shape == interval.upper.shape == (1, 3)
    assert not interval.is_point


@pytest.mark.parametrize(("low", "high"), [(NAN, 1.0), (0.0, NAN), (NAN, NAN)])
def test_between_takes_a_nan_bound_for_anything(low, high):
    interval = Interval.between(tensor(low, 0.0), tensor(high, 2.0), (2,), torch.float32)
    assert interval.may_nan
    assert (interval.lower.tolist(), interval.upper.tolist()) == ([-INF, 0.0], [INF, 2.0])


def test_between_keeps_gradients():
    low = torch.zeros(2, requires_grad=True)
    Interval.between(low * 2, low + 1, (2,), torch.float32).lower.sum().backward()
    assert low.grad.tolist() == [2.0, 2.0]


@each_float
@pytest.mark.parametrize("value", [0.1, -0.1, 1 / 3, 1e-45, -1e-45, 65519.9, 1e300, -1e300, 0.0])
def test_full_rounds_outward(dtype, value):
    interval = Interval.full(value, value, (2, 3), dtype)
    assert interval.low <= value <= interval.high
    assert interval.lower.shape == (1, 1)
    exact = torch.tensor(value, dtype=dtype).double().item() == value
    assert (interval.low == interval.high) == exact


@each_float
@quick
@given(value=st.floats(allow_nan=False))
def test_rounding_encloses_and_is_tight(dtype, value):
    below, above = round_down(value, dtype), round_up(value, dtype)
    assert below <= value <= above
    nearest = torch.tensor(value, dtype=dtype)
    assert float(nearest) in (below, above)
    next_up = torch.nextafter(torch.tensor(below, dtype=dtype), torch.tensor(INF, dtype=dtype))
    assert above in (below, float(next_up))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_rounding_leaves_integers_alone(dtype):
    assert round_down(7, dtype) == round_up(7, dtype) == 7


# --- top -----------------------------------------------------------------------------------


@each_float
def test_top_of_floats_holds_everything(dtype):
    interval = Interval.top((2,), dtype)
    assert interval.contains(torch.tensor([NAN, -INF], dtype=dtype))
    assert interval.may_posinf
    assert interval.may_neginf


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool], ids=str)
def test_top_of_integers_ends_at_the_limits(dtype):
    limits = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    interval = Interval.top((2,), dtype)
    assert (interval.lower.item(), interval.upper.item()) == limits
    assert interval.is_finite


# --- asking --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "nan", "posinf", "neginf", "finite"),
    [
        (-1.0, 1.0, False, False, False, True),
        (-1.0, INF, False, True, False, False),
        (-INF, 1.0, False, False, True, False),
        (-1.0, 1.0, True, False, False, False),
    ],
)
def test_what_may_occur(low, high, nan, posinf, neginf, finite):
    interval = Interval.full(low, high, (3,), torch.float32).with_nan(nan)
    assert interval.may_posinf is posinf
    assert interval.may_neginf is neginf
    assert interval.may_inf is (posinf or neginf)
    assert interval.is_finite is finite


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [(-1, 1, True), (0, 1, True), (-1, -0.0, True), (0.1, 1, False), (-1, -0.1, False)],
)
def test_contains_zero(low, high, answer):
    assert Interval.full(low, high, (2,), torch.float32).contains_zero() is answer


def test_magnitude_is_the_larger_end():
    interval = Interval.between(tensor(-3.0, 1.0), tensor(2.0, 4.0), (2,), torch.float32)
    assert interval.magnitude.tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    ("data", "nan", "inside"),
    [
        ((0.5, 1.0), False, True),
        ((-0.0, 1.0), False, True),
        ((0.5, 1.1), False, False),
        ((0.5, NAN), False, False),
        ((0.5, NAN), True, True),
        ((1.1, NAN), True, False),
        ((0.5, INF), True, False),
    ],
)
def test_contains(data, nan, inside):
    interval = Interval.full(0, 1, (2,), torch.float32).with_nan(nan)
    assert interval.contains(tensor(*data)) is inside


def test_a_block_bounds_every_element_of_its_dimension():
    interval = Interval.between([[0.0], [5.0]], [[1.0], [6.0]], (2, 3), torch.float32)
    assert interval.contains(torch.tensor([[0.0, 0.5, 1.0], [5.0, 5.5, 6.0]]))
    assert not interval.contains(torch.tensor([[0.0, 0.5, 1.0], [5.0, 0.5, 6.0]]))


# --- empty tensors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "interval",
    [
        Interval.point(torch.zeros(0, 3)),
        Interval.full(1, 2, (0, 3), torch.float32),
        Interval.top((0, 3), torch.float32),
        Interval.between(1.0, 2.0, (0, 3), torch.float32).merged(),
    ],
    ids=["point", "full", "top", "between"],
)
def test_empty_tensors(interval):
    assert interval.is_empty_tensor
    assert interval.contains(torch.zeros(0, 3))
    assert (interval.low, interval.high) == (INF, -INF)
    assert not interval.may_inf
    assert not interval.contains_zero()
    assert interval.limited() is interval
    assert widen(interval) is interval
    assert interval.expanded()[0].shape == (0, 3)
    assert interval.hull(interval).is_empty_tensor


# --- merging -------------------------------------------------------------------------------


def _boxes(rank_limit=3):
    """Intervals with random blocks, and data inside them."""

    def build(shape, merged, seed):
        generator = torch.Generator().manual_seed(seed)
        blocks = [1 if flag else size for size, flag in zip(shape, merged, strict=False)]
        ends = torch.randn((2, *blocks), generator=generator).sort(0).values
        interval = Interval.between(ends[0], ends[1], shape, torch.float32)
        position = torch.rand(shape, generator=generator)
        low, high = interval.expanded()
        data = (low + position * (high - low)).clamp(low, high)
        return interval, data

    return st.builds(
        build,
        st.lists(st.integers(1, 4), min_size=0, max_size=rank_limit).map(tuple),
        st.lists(st.booleans(), min_size=rank_limit, max_size=rank_limit),
        st.integers(0, 1000),
    )


@quick
@given(boxes=_boxes(), keep=st.sets(st.integers(-1, 0)))
def test_merging_holds_what_was_held(boxes, keep):
    interval, data = boxes
    merged = interval.merged(keep=tuple(keep) if interval.shape else ())
    assert merged.contains(data)
    assert (merged.low, merged.high) == (interval.low, interval.high)
    kept = {dim % len(interval.shape) for dim in keep} if interval.shape else set()
    for dim, size in enumerate(merged.lower.shape):
        assert size == (interval.lower.shape[dim] if dim in kept else 1)


@quick
@given(first=_boxes(), seed=st.integers(0, 99))
def test_hull_is_the_smallest_that_holds_both(first, seed):
    interval, data = first
    generator = torch.Generator().manual_seed(seed)
    point = Interval.point(torch.randn(interval.shape, generator=generator))
    hull = interval.hull(point)
    assert hull.contains(data)
    assert hull.contains(point.lower)
    low, high = interval.expanded()
    assert torch.equal(hull.lower.expand(hull.shape), torch.minimum(low, point.lower))
    assert torch.equal(hull.upper.expand(hull.shape), torch.maximum(high, point.upper))


def test_hull_may_be_nan_if_either_may():
    one = Interval.full(0, 1, (2,), torch.float32)
    assert one.hull(one.with_nan()).may_nan
    assert one.with_nan().hull(one).may_nan
    assert not one.hull(one).may_nan


def test_merging_what_is_merged_changes_nothing():
    interval = Interval.full(0, 1, (2, 3), torch.float32)
    assert interval.merged() is interval


def test_limited_keeps_small_and_merges_large():
    small = Interval.point(torch.randn(4, 4))
    assert small.limited() is small
    channels = Interval.point(torch.randn(2, 3, 200, 200)).limited()
    assert channels.lower.shape == (1, 3, 1, 1)
    wide = Interval.point(torch.randn(2, MERGE_ABOVE + 1)).limited()
    assert wide.lower.shape == (1, 1)
    vector = Interval.point(torch.randn(MERGE_ABOVE + 1)).limited()
    assert vector.lower.shape == (1,)
    assert vector.lower.item() == vector.low


# --- cutting and widening ------------------------------------------------------------------


def test_intersect_cuts_but_keeps_nan():
    interval = Interval.full(-5, 5, (2,), torch.float32).with_nan()
    cut = interval.intersect(-1, 2)
    assert (cut.low, cut.high, cut.may_nan) == (-1, 2, True)
    assert interval.intersect().low == -5


def test_with_nan_gives_itself_back_when_nothing_changes():
    interval = Interval.full(0, 1, (2,), torch.float32)
    assert interval.with_nan(False) is interval
    assert interval.with_nan().may_nan
    assert not interval.with_nan().with_nan(False).may_nan


@each_float
@quick
@given(value=st.floats(-300, 300), ulps=st.integers(1, 16), absolute=st.sampled_from([0.0, 1e-3]))
def test_widen_goes_at_least_that_many_ulps_outward(dtype, value, ulps, absolute):
    point = torch.tensor(value, dtype=dtype)
    wide = widen(Interval(point, point, (), dtype), ulps, absolute)
    low = high = point
    for _ in range(ulps):
        low = torch.nextafter(low, torch.tensor(-INF, dtype=dtype))
        high = torch.nextafter(high, torch.tensor(INF, dtype=dtype))
    assert wide.low <= float(low)
    assert wide.high >= float(high)
    assert wide.high - wide.low >= 2 * absolute * (1 - 2**-6)


@each_float
def test_widen_at_the_ends_of_the_dtype(dtype):
    largest = torch.finfo(dtype).max
    wide = widen(Interval.point(torch.tensor([largest, INF, -INF, -largest], dtype=dtype)))
    assert wide.upper.tolist()[:2] == [INF, INF]
    assert wide.lower.tolist()[2:] == [-INF, -INF]
    assert wide.lower.tolist()[1] == largest
    assert wide.upper.tolist()[2] == -largest


def test_widen_leaves_integers_alone():
    counts = Interval.point(torch.tensor([1, 2]))
    assert widen(counts) is counts


def test_gamma_is_higham_s():
    roundoff = unit_roundoff(torch.float32)
    assert roundoff == 2**-24
    assert gamma(10, torch.float32) == pytest.approx(10 * roundoff, rel=1e-5)
    assert gamma(0, torch.float32) == gamma(1, torch.float32)
    assert gamma(10**9, torch.float16) == INF


# --- showing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-3.0, "-3"), (1e6, "1e+06"), (0.12345, "0.1235"), (INF, "inf"), (NAN, "nan")],
)
def test_format_number(value, text):
    assert format_number(value) == text


def test_repr_and_dict():
    interval = Interval.full(-0.5, INF, (2, 3), torch.float32).with_nan()
    assert repr(interval) == str(interval) == "[-0.5, inf] or NaN"
    assert interval.to_dict() == {
        "lower": -0.5,
        "upper": INF,
        "may_nan": True,
        "shape": [2, 3],
        "dtype": "float32",
    }
    assert json.dumps(Interval.full(0, 1, (), torch.bool).to_dict())


# --- one pair of bounds ----------------------------------------------------------------------


def _pairs(dtype):
    """Two numbers of a dtype in order, infinities among them, and NaN or not."""
    number = st.floats(allow_nan=False).map(lambda x: round_down(x, dtype))
    ends = st.tuples(number, number).map(sorted)
    return st.tuples(ends, st.booleans())


def _twins(pair, dtype, shape=(2, 3)):
    """The same interval as two numbers and as tensors."""
    (low, high), may_nan = pair
    ones = (1,) * len(shape)
    lower, upper = (torch.full(ones, end, dtype=dtype) for end in (low, high))
    plain = Interval.full(low, high, shape, dtype).with_nan(may_nan)
    return plain, Interval(lower, upper, shape, dtype, may_nan)


def _same(first, second):
    assert (first.shape, first.dtype, first.may_nan) == (second.shape, second.dtype, second.may_nan)
    assert torch.equal(first.lower, second.lower)
    assert torch.equal(first.upper, second.upper)


@each_float
@quick
@given(data=st.data())
def test_numbers_and_tensors_agree(dtype, data):
    numbers, tensors = _twins(data.draw(_pairs(dtype)), dtype)
    assert numbers.is_uniform
    assert tensors.is_uniform
    _same(numbers, tensors)
    for name in ("low", "high", "is_finite", "may_posinf", "may_neginf", "is_point"):
        assert getattr(numbers, name) == getattr(tensors, name), name
    assert numbers.contains_zero() == tensors.contains_zero()
    _same(numbers.merged(), tensors.merged())
    _same(numbers.limited(), tensors.limited())
    _same(numbers.with_nan(), tensors.with_nan())
    cut = data.draw(_pairs(dtype))[0]
    _same(numbers.intersect(*cut), tensors.intersect(*cut))
    others = _twins(data.draw(_pairs(dtype)), dtype)
    _same(numbers.hull(others[0]), tensors.hull(others[1]))


def test_the_tensors_of_a_pair_are_made_once_and_only_when_asked_for():
    interval = Interval.full(-1, 1, (4, 5), torch.float32)
    assert interval._lower is None
    assert interval.merged() is interval.limited() is interval
    assert interval.lower is interval.lower
    assert interval.lower.shape == (1, 1)
    assert interval.lower is not interval.upper


def test_integers_keep_their_limits_to_the_last_digit():
    interval = Interval.top((2,), torch.int64)
    assert interval.hull(interval).upper.item() == torch.iinfo(torch.int64).max


def test_what_carries_a_gradient_is_not_taken_for_numbers():
    low = torch.zeros(1, requires_grad=True) * 2
    assert not Interval.between(low, low + 1, (3,), torch.float32).is_uniform
    assert not Interval.full(0, 1, (0, 2), torch.float32).is_uniform


@each_float
@quick
@given(value=st.floats())
def test_nearest_is_torch_s_own_rounding(dtype, value):
    expected = torch.tensor(value, dtype=torch.float64).to(dtype).item()
    assert round_nearest(value, dtype) == expected or math.isnan(value)


# --- subnormal ends ------------------------------------------------------------------------

TINY = torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("size", [3, 70_000])
@pytest.mark.parametrize(
    ("lowest", "highest"), [(-2.0, 3.0), (0.0, 3.0), (TINY, 3.0), (-3.0, 0.0), (-3.0, -TINY)]
)
def test_subnormal_ends_are_seen_wherever_they_are(lowest, highest, size):
    bound = torch.full((size,), lowest)
    bound[-1] = highest
    wide = bound.clone()
    wide[0] -= 1
    wide[-1] += 1
    assert Interval(bound, bound, (size,), torch.float32).has_normal_ends
    assert Interval(wide, wide + 4, (size,), torch.float32).has_normal_ends
    for part in (TINY / 2, -TINY / 2):
        lost = bound.clone()
        lost[1] = part
        assert not Interval(lost, lost, (size,), torch.float32).has_normal_ends
    low, high = wide.clone(), wide.clone() + 4
    low[1], high[1] = TINY / 2, 4.0
    assert not Interval(low, high, (size,), torch.float32).has_normal_ends
    low[1], high[1] = -4.0, -TINY / 2
    assert not Interval(low, high, (size,), torch.float32).has_normal_ends
    low[1], high[1] = -TINY / 2, TINY / 2  # what may be lost of these is inside
    assert Interval(low.clamp(max=0), high.clamp(min=0), (size,), torch.float32).has_normal_ends


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_the_ends_of_an_integer_dtype_stay_ends(dtype):
    limits = torch.iinfo(dtype)
    for interval in (
        Interval.top((2,), dtype),
        Interval.full(float(limits.min), float(limits.max), (2,), dtype),
        Interval.full(-math.inf, math.inf, (2,), dtype),
        Interval.uniform(float(limits.min), float(limits.max), (2,), dtype),
        Interval.between(
            torch.tensor([-math.inf, 0.0], dtype=torch.float64),
            torch.tensor([float(limits.max), math.inf], dtype=torch.float64),
            (2,),
            dtype,
        ),
    ):
        assert int(interval.upper.min()) == limits.max
        assert int(interval.lower.min()) == limits.min
        assert interval.contains(torch.tensor([0, limits.max], dtype=dtype))
