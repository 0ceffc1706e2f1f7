"""Tensors without data (on the meta device, or fake) replaced by random numbers.

So a module can be analysed before there is any data: `torch.empty(8, 3, 224, 224,
device="meta")` says the shape, `inputs={"x": (0, 1)}` the range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ranum.analysis.capture.program import Program
from ranum.analysis.graph import fits
from ranum.analysis.interval import Interval
from ranum.errors import ArgumentError, CaptureError

FARTHEST = 1e3
"""Where random numbers end, if the range they stand for has no end."""


def with_data(program: Program, ranges: Mapping[str, Any] | None) -> tuple[Program, list[str]]:
    """The program with random numbers for inputs without data, and the names of those.

    Args:
        program: A step.
        ranges: What `analyze` was given as `inputs`: random numbers are spread evenly over
            these, standard normal elsewhere; integers without a range are 0 and 1.

    Raises:
        ArgumentError: If the module's own weights hold no data.
        CaptureError: If they have no shape yet.
    """
    lazy = [name for name, each in program.parameters.items() if nn.parameter.is_lazy(each)]
    if lazy:
        raise CaptureError(
            f"{program.description} could not be recorded: {lazy[0]} is of a lazy layer, which "
            "gets its shape in the first run. Call the step once before."
        )
    empty = [name for name, weight in program.parameters.items() if weight.is_meta]
    if empty:
        raise ArgumentError(
            f"the weights of {program.description} must hold numbers; {empty[0]} is on the meta "
            "device. Use model.to_empty(device='cpu') and initialise it first."
        )
    generator = torch.Generator().manual_seed(0)
    made = {
        name: _random(tensor, _range(name, ranges), generator)
        for name, tensor in program.inputs.items()
        if tensor.is_meta or type(tensor).__name__ == "FakeTensor"
    }
    if not made:
        return program, []
    return replace(program, arguments=program.batch(made)), list(made)


def _range(name: str, ranges: Mapping[str, Any] | None) -> tuple[float, float] | None:
    if not isinstance(ranges, Mapping):
        return None
    pair: Any = ranges.get(name) or next((r for n, r in ranges.items() if fits(name, n)), None)
    if isinstance(pair, Interval):
        return pair.low, pair.high
    is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
    if not is_pair or not all(isinstance(end, (int, float)) for end in pair):
        return None  # which `starting_ranges` refuses
    return float(pair[0]), float(pair[1])


def _random(fake: Tensor, ends: tuple[float, float] | None, generator: torch.Generator) -> Tensor:
    shape, dtype = [int(size) for size in fake.shape], fake.dtype
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype)
    if not dtype.is_floating_point:
        low, high = (0, 1) if ends is None or not all(map(math.isfinite, ends)) else ends
        whole = torch.randint(int(low), max(int(high), int(low)) + 1, shape, generator=generator)
        return whole.to(dtype)
    if ends is None:
        return torch.randn(shape, generator=generator).to(dtype)
    low, high = (min(max(end, -FARTHEST), FARTHEST) for end in ends)
    return (low + (high - low) * torch.rand(shape, generator=generator)).to(dtype).clamp(*ends)
