"""Short trainings of a LightningModule, for the search: a copy, a plain loop, a score.

A trial starts from the weights that `fit` started with, trains on part of the training data
and is scored by its mean loss on the rest. Nothing of the Trainer is used or changed.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Subset

from ranum._untouched import untouched
from ranum.analysis.capture.lightning import lightning_program
from ranum.repair.search.reporter import Reporter
from ranum.repair.search.surgery import apply_configuration, build_optimizer

HELD_OUT = 0.2
"""Share of the training data that a trial is scored on and not trained on."""
HELD_OUT_BATCHES = 20
"""At most this many batches are used for scoring."""
REPORTS = 10
"""A trial reports this many times, so that the search can end it early."""


@dataclass(frozen=True, slots=True)
class Trials:
    """Trains configurations of one LightningModule.

    Attributes:
        module: The module under repair; only copies of it are trained.
        initial: Its parameters and buffers as they were when `fit` began, by name.
        optimizer: The optimizer under repair; gives groups and options.
        loader: The Trainer's training loader.
        to_device: Moves a batch to the module's device.
        precision: Makes the context in which the Trainer runs its forward pass.
        epochs: Length of a trial in passes over its data, ...
        max_steps: ... but at most this many steps of the loader's own batch size.
    """

    module: nn.Module
    initial: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    loader: Any
    to_device: Callable[[Any], Any]
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    epochs: float = 3.0
    max_steps: int = 200

    def train(self, configuration: dict[str, Any], report: Reporter) -> float:
        """Trains a copy of the module; the mean loss on held-out data."""
        with untouched(None):  # the run's random numbers are not used up
            torch.manual_seed(report.seed)
            model = copy.deepcopy(self.module)
            load_state(model, self.initial)
            apply_configuration(model, configuration, seed=report.seed)
            model.train()
            optimizer = build_optimizer(
                configuration["optimizer"],
                _groups_like(self.optimizer, self.module, model),
                configuration["learning_rate"],
                like=self.optimizer,
            )
            batches, held_out = self._data(configuration.get("batch_size"), report.seed)
            clip = configuration.get("gradient_clip") or math.inf
            self._fit(model, optimizer, batches, report, clip)
            return self._score(model, held_out)

    def _fit(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Iterator[tuple[int, Any]],
        report: Reporter,
        clip: float,
    ) -> None:
        """Trains for a number of samples, the same for every batch size, reporting ten times.

        Gradients are clipped to the L2 norm `clip`.
        """
        total = self._samples()
        seen, reported, losses = 0, 0, []
        for size, batch in batches:
            optimizer.zero_grad(set_to_none=True)
            loss = self._loss(model, batch)
            if loss is None:
                raise ValueError("training_step returned no loss")
            loss.backward()
            if clip < math.inf:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            losses.append(float(loss.detach()))
            seen += size
            if seen * REPORTS >= total * (reported + 1):
                report(reported, sum(losses) / len(losses))
                reported, losses = reported + 1, []
            if seen >= total:
                return

    def _samples(self) -> int:
        base = getattr(self.loader, "batch_size", None) or 1
        if not has_choice_of_batch_size(self.loader):
            return base * self.max_steps
        size = int(len(self.loader.dataset) * (1 - HELD_OUT) * self.epochs)
        return max(min(size, base * self.max_steps), 1)

    def _loss(self, model: nn.Module, batch: Any) -> Tensor | None:
        program = lightning_program(model, batch, precision=self.precision)
        return program.step(self.to_device(batch))

    def _score(self, model: nn.Module, batches: Iterator[Any]) -> float:
        model.eval()
        losses = []
        with torch.no_grad():
            for batch in itertools.islice(batches, HELD_OUT_BATCHES):
                loss = self._loss(model, batch)
                if loss is not None:
                    losses.append(float(loss))
        return sum(losses) / len(losses) if losses else math.inf

    def _data(
        self, batch_size: int | None, seed: int
    ) -> tuple[Iterator[tuple[int, Any]], Iterator[Any]]:
        """Endless training batches with their sizes, and held-out batches."""
        if not has_choice_of_batch_size(self.loader):
            head = list(itertools.islice(iter(self.loader), HELD_OUT_BATCHES // 4 or 1))
            rest = itertools.chain.from_iterable(itertools.repeat(self.loader))
            return ((self.loader.batch_size or 1, batch) for batch in rest), iter(head)
        dataset = self.loader.dataset
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
        cut = max(1, int(len(order) * HELD_OUT)) if len(order) > 1 else 0
        size = batch_size or self.loader.batch_size
        options = {"collate_fn": self.loader.collate_fn, "num_workers": 0}
        training = DataLoader(
            Subset(dataset, order[cut:] or order),
            batch_size=min(size, max(len(order) - cut, 1)),
            shuffle=True,
            drop_last=len(order) - cut > size,
            generator=torch.Generator().manual_seed(seed),
            **options,
        )
        held_out = DataLoader(
            Subset(dataset, order[:cut] or order), batch_size=self.loader.batch_size, **options
        )
        endless = itertools.chain.from_iterable(itertools.repeat(training))
        return ((training.batch_size or 1, batch) for batch in endless), iter(held_out)


def has_choice_of_batch_size(loader: Any) -> bool:
    """True for a plain loader over an indexable dataset, whose batch size may be changed."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_size is not None
        and hasattr(loader.dataset, "__len__")
    )


def with_batch_size(loader: DataLoader[Any], batch_size: int) -> DataLoader[Any]:
    """The same loader with another batch size; order and workers as before."""
    shuffles = isinstance(loader.sampler, RandomSampler)
    options: dict[str, Any] = {"shuffle": True} if shuffles else {"sampler": loader.sampler}
    if loader.num_workers > 0:
        options["persistent_workers"] = loader.persistent_workers
        options["prefetch_factor"] = loader.prefetch_factor
    return DataLoader(
        loader.dataset,
        batch_size=batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
        **options,
    )


def saved_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers in the host's memory, by name.

    Empty while a lazy parameter or buffer has no shape yet.
    """
    tensors = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    if any(map(nn.parameter.is_lazy, tensors.values())):
        return {}
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Writes saved parameters and buffers back, in place."""
    with torch.no_grad():
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            if name in state:
                tensor.copy_(state[name])


def _groups_like(
    optimizer: torch.optim.Optimizer, source: nn.Module, model: nn.Module
) -> list[dict[str, Any]]:
    """The optimizer's parameter groups, with the copy's parameters in place of the module's.

    Parameters that came with a swapped activation join the first group.
    """
    names = {id(p): name for name, p in source.named_parameters()}
    own = dict(model.named_parameters())
    groups, used = [], set()
    for group in optimizer.param_groups:
        members = [names[id(p)] for p in group["params"] if id(p) in names]
        members = [name for name in members if name in own]
        used |= set(members)
        groups.append({**group, "params": [own[name] for name in members]})
    known = set(names.values())
    new = [p for name, p in own.items() if name not in known and p.requires_grad]
    if groups and new:
        groups[0]["params"] = [*groups[0]["params"], *new]
    return [group for group in groups if group["params"]]
