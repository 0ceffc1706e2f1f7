"""A faulty step as one file: its batch, weights, buffers and random numbers.

The file holds plain data and tensors only, so `torch.load(path, weights_only=True)` reads it, and
opening one that somebody else has sent runs no code.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ranum._untouched import RandomState, random_state, set_random_state, untouched
from ranum.errors import ArgumentError
from ranum.guards._shards import Weights, own_class
from ranum.guards.culprit import find_culprit, look, named_tensors
from ranum.guards.types import Culprit, Extremes, Finding

FORMAT = "ranum incident"
MOST_BYTES = 4 << 30
"""Weights and buffers beyond this are left out of a file; the batch is kept all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentFile:
    """A faulty step that has been read back.

    Attributes:
        path: Of the file.
        step: Step that was withheld.
        epoch: Counting from 0.
        finding: What decided, as plain data.
        culprit: What the replay named then, as plain data; None if it named none.
        model: Class of the model, "package.module.Class".
        batches: Its micro-batches: tensors and plain values, in dicts, lists and tuples.
        parameters: By name, as they were; empty if they were too large.
        buffers: By name, as they were before the batch.
        random: Torch's random numbers before the batch.
        left_out: What the file could not hold, by name.
        torch_version: Of the run.
    """

    path: Path
    step: int
    epoch: int
    finding: Mapping[str, Any]
    culprit: Mapping[str, Any] | None
    model: str
    batches: Sequence[Any]
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    random: RandomState
    left_out: Sequence[str]
    torch_version: str

    def extremes(self) -> tuple[Extremes, ...]:
        """Of every tensor of the batches, by name."""
        whole = self.batches[0] if len(self.batches) == 1 else self.batches
        return tuple(
            look(name, tensor)
            for name, tensor in named_tensors(whole, "batch")
            if tensor.is_floating_point() or not tensor.is_complex()
        )

    def replay(self, model: nn.Module, step: Callable[[Any], Any]) -> Culprit | None:
        """Runs the step again, on the weights, buffers and random numbers of then.

        The model's own are put back afterwards.

        Args:
            model: Of the same class and shapes as the one that failed.
            step: Called with each micro-batch; runs forward and loss, and returns the loss, which
                is differentiated here unless the step has done so itself.

        Returns:
            The first operator that made finite values infinite or NaN; None if the step is
            finite here.

        Raises:
            ArgumentError: If the model does not have the weights that the file holds.
        """
        with untouched(model):
            self._load(model)
            set_random_state(self.random)
            runs = [partial(_differentiated, step, batch) for batch in self.batches]
            return find_culprit(
                lambda: [run() for run in runs],
                model=model,
                batch=self.batches[0] if len(self.batches) == 1 else self.batches,
                strict=True,
            )

    def _load(self, model: nn.Module) -> None:
        pairs: list[tuple[Tensor, Tensor]] = []
        own: list[tuple[str, Mapping[str, Tensor], dict[str, Tensor]]] = [
            ("weight", self.parameters, dict(model.named_parameters())),
            ("buffer", self.buffers, dict(model.named_buffers())),
        ]
        for kind, saved, present in own:
            for name, tensor in saved.items():
                there = present.get(name)
                if there is None or there.shape != tensor.shape:
                    shape = "none" if there is None else str(tuple(there.shape))
                    raise ArgumentError(
                        f"model must be the one that failed, {self.model}: its {kind} {name!r} "
                        f"has the shape {tuple(tensor.shape)}; got {shape}."
                    )
                pairs.append((there, tensor))
        with torch.no_grad():
            for there, tensor in pairs:
                there.copy_(tensor)


def save_incident(
    path: str | Path,
    *,
    model: nn.Module,
    batches: Sequence[Any],
    finding: Finding,
    culprit: Culprit | None,
    step: int,
    epoch: int,
    random: RandomState | None = None,
    weights: Weights | None = None,
) -> Path:
    """Writes a faulty step to a file, in one piece: there is a whole file or none.

    Args:
        path: Where to.
        model: As it was before the step.
        batches: The micro-batches of the step.
        finding: What decided.
        culprit: What the replay named.
        step: Its number.
        epoch: Counting from 0.
        random: Torch's random numbers before the batch; those of now by default.
        weights: Parameters and buffers, by name, where the model holds parts of them only; empty
            if they are too large. The model's by default.

    Raises:
        OSError: If it cannot be written.
    """
    target = Path(path)
    left_out: list[str] = []
    held = [_plain(batch, f"batch[{n}]", left_out) for n, batch in enumerate(batches)]
    parameters, buffers = weights or (
        {name: p.detach() for name, p in model.named_parameters()},
        {name: b.detach() for name, b in model.named_buffers()},
    )
    total = sum(tensor.nbytes for tensor in (*parameters.values(), *buffers.values()))
    if total > MOST_BYTES or (not parameters and any(True for _ in model.parameters())):
        parameters, buffers = {}, {}
        left_out.append("the weights, which are too large")
    before = random_state(all_generators=False) if random is None else random
    kind = own_class(model)
    data = {
        "format": FORMAT,
        "version": 1,
        "step": step,
        "epoch": epoch,
        "finding": finding.to_dict(),
        "culprit": None if culprit is None else culprit.to_dict(),
        "model": f"{kind.__module__}.{kind.__qualname__}",
        "batches": held,
        "parameters": parameters,
        "buffers": buffers,
        "random": {"torch": before.torch, "cuda": dict(before.cuda)},
        "left_out": left_out,
        "torch": torch.__version__.partition("+")[0],
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(data, file)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return target


def load_incident(path: str | Path) -> IncidentFile:
    """Reads a file that `save_incident` wrote; nothing in it is run.

    Raises:
        ArgumentError: If there is no such file, or it is none of these.
    """
    file = Path(path)
    if not file.is_file():
        raise ArgumentError(
            f"path must be the file of an incident; there is none at {str(path)!r}."
        )
    try:
        data = torch.load(file, map_location="cpu", weights_only=True)
        is_known = data["format"] == FORMAT and data["version"] == 1
    except Exception as error:
        raise ArgumentError(
            f"path must be the file of an incident; {str(path)!r} cannot be read: {error}"
        ) from error
    if not is_known:
        raise ArgumentError(
            f"path must be an incident of version 1; {str(path)!r} is of {data['version']!r}."
        )
    return IncidentFile(
        path=file,
        step=data["step"],
        epoch=data["epoch"],
        finding=data["finding"],
        culprit=data["culprit"],
        model=data["model"],
        batches=data["batches"],
        parameters=data["parameters"],
        buffers=data["buffers"],
        random=RandomState(torch=data["random"]["torch"], cuda={}),
        left_out=data["left_out"],
        torch_version=data["torch"],
    )


def _differentiated(step: Callable[[Any], Any], batch: Any) -> Any:
    loss = step(batch)
    if isinstance(loss, Tensor) and loss.requires_grad:
        loss.sum().backward()
    return loss


def _plain(value: Any, name: str, left_out: list[str]) -> Any:
    """The same in tensors, numbers, texts, dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value.detach().clone()  # a view would be written with all that it looks into
    if isinstance(value, (int, float, complex, bool, str, bytes, type(None))):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{name}[{key!r}]", left_out) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        pairs = zip(value._fields, value, strict=True)
        return {key: _plain(item, f"{name}.{key}", left_out) for key, item in pairs}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, f"{name}[{n}]", left_out) for n, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if is_dataclass(value) and not isinstance(value, type):
        names = [entry.name for entry in fields(value)]
        return {key: _plain(getattr(value, key), f"{name}.{key}", left_out) for key in names}
    if type(value).__module__ == "numpy" and hasattr(value, "__array__"):
        with suppress(TypeError):
            return torch.as_tensor(value)
    left_out.append(f"{name}, a {type(value).__name__}")
    return None
