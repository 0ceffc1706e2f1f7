"""Trains a case once, and has it judged by Ranum's symptoms and, if asked, by peers' rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from benchmarks.symptoms.peers import Rule, Sight, rules
from benchmarks.symptoms.task import Case, Task
from ranum.guards._buffers import BufferCopies
from ranum.guards.readings import TorchReader
from ranum.guards.symptoms import Monitor, Symptom, default_symptoms
from ranum.guards.types import Finding, Reading

SAMPLE_EVERY = 10
"""The guard's default."""
LOOK_EVERY = 5
"""Steps between two looks at tensors for peers; rules over the loss are asked in every step."""
VALIDATE_EVERY = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one judge said about one run.

    Attributes:
        judge: "Ranum", or the peer.
        name: Of the rule.
        codes: Symptoms that the rule stands for.
        first: Step at which it spoke up first.
        times: Checks at which it spoke up.
    """

    judge: str
    name: str
    codes: tuple[str, ...]
    first: int
    times: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of a case.

    Attributes:
        case: That was run.
        seed: Of torch's random numbers.
        first: Median of the first eight losses.
        last: Median of the last 32 losses.
        verdicts: Everything that was said.
        checks: By judge, how often a rule was asked.
    """

    case: Case
    seed: int
    first: float
    last: float
    verdicts: tuple[Verdict, ...]
    checks: dict[str, int]

    def named(self, judge: str) -> int | None:
        """The first step at which the judge named what is wrong; None if it did not."""
        steps = [
            verdict.first
            for verdict in self.verdicts
            if verdict.judge == judge and set(verdict.codes) & set(self.case.expected)
        ]
        return min(steps, default=None)

    def is_in_time(self, judge: str) -> bool:
        """True if it was named within the case's number of steps."""
        step = self.named(judge)
        return step is not None and step <= self.case.within

    def others(self, judge: str) -> tuple[Verdict, ...]:
        """What was said that is neither expected nor a consequence."""
        fine = {*self.case.expected, *self.case.also}
        return tuple(v for v in self.verdicts if v.judge == judge and not fine & set(v.codes))


def run(
    case: Case,
    seed: int,
    *,
    peers: bool = False,
    symptoms: Iterable[Symptom] | None = None,
) -> Outcome:
    """Trains the case to its end, whatever is found, and collects the verdicts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        task = case.build()
        monitor = Monitor(default_symptoms() if symptoms is None else symptoms, strict=True)
        judges = rules(case.steps) if peers else ()
        found: dict[str, list[Finding]] = {}
        said: dict[str, list[int]] = {}
        losses = []
        for i, reading in enumerate(_readings(task, case.steps, judges, said)):
            for finding in monitor.observe(reading):
                found.setdefault(finding.code, []).append(finding)
            if reading.loss is not None:
                losses.append(reading.loss)
            del i
    verdicts = [
        Verdict("Ranum", ones[0].symptom, (code,), ones[0].step, len(ones))
        for code, ones in found.items()
    ]
    verdicts += [
        Verdict(rule.tool, rule.name, rule.codes, steps[0], len(steps))
        for rule in judges
        if (steps := said.get(f"{rule.tool} {rule.name}"))
    ]
    checks = {"Ranum": case.steps}
    for rule in judges:
        checks[rule.tool] = checks.get(rule.tool, 0) + rule.asked
    return Outcome(
        case=case,
        seed=seed,
        first=float(torch.tensor(losses[:8]).median()),
        last=float(torch.tensor(losses[-32:]).median()),
        verdicts=tuple(sorted(verdicts, key=lambda verdict: verdict.first)),
        checks=checks,
    )


def _readings(
    task: Task, steps: int, judges: tuple[Rule, ...], said: dict[str, list[int]]
) -> Iterable[Reading]:
    reader = TorchReader(task.model, sample_every=SAMPLE_EVERY)
    sight = Sight(task)
    buffers = BufferCopies()
    for i in range(steps):
        buffers.take(task.model)  # as a guard does
        if task.clears:
            task.optimizer.zero_grad()
        looks = bool(judges) and i % LOOK_EVERY == 0
        with reader.watch(i), sight.watch(looks):
            loss = task.step(i)
        reader.look(i, loss)
        loss.backward()
        task.before_update(i)
        validation = None
        if task.validate is not None and i and i % VALIDATE_EVERY == 0:
            validation = task.validate()
        if judges:
            with torch.random.fork_rng(devices=[]):
                sight.see(i, float(loss.detach()), validation, looks=looks)
                for rule in judges:
                    if rule.fires(sight):
                        said.setdefault(f"{rule.tool} {rule.name}", []).append(i)
        state = torch.get_rng_state()
        reading = reader.read(step=i, loss=loss, optimizer=task.optimizer, buffers=buffers.floats)
        yield replace(reading, validation_loss=validation)
        torch.set_rng_state(state)
        task.optimizer.step()
