"""The Keras adapter: a `Callback` over the guard.

Keras shows its callbacks neither gradients nor batches, and asks them only after the update. So
the callback stands in for the model's `train_function` while it is called: the step inside is
traced with its gradients measured and its update under a condition, and the batch is fetched
before it, so that it can come again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ranum.callbacks._options import (
    analyze_option,
    path_option,
    remedies_option,
    seconds_option,
    steps_option,
    symptoms_option,
)
from ranum.callbacks._remedies import InsertClip
from ranum.callbacks._session import Session
from ranum.errors import ArgumentError, MissingExtraError, RanumWarning
from ranum.guards.base import GuardBase
from ranum.guards.decision import Decision
from ranum.guards.recovery import Fault, Outcome, Remedy, Retry, Rollback
from ranum.guards.symptoms import Symptom
from ranum.guards.types import History

try:
    import keras

    from ranum.callbacks._keras.guard import ClipWithheld, KerasGuard, SkipWithheld
    from ranum.callbacks._keras.step import GuardedStep
except ImportError as error:
    raise MissingExtraError("keras", "keras", "RanumCallback") from error

RemedyName = Literal["retry", "skip", "clip_gradients", "clip", "rollback"]
REMEDIES: tuple[RemedyName, ...] = ("retry", "skip", "clip_gradients", "clip", "rollback")
LEARNING_RATE_FACTOR = 10**-0.5
"""As in Lightning: every way back lowers the learning rate by half a decade."""


class InsertClipTraced(InsertClip):
    """A live patch, of a step that has been traced.

    Args:
        session: As in `InsertClip`.
        learning_rate_factor: As in `InsertClip`.
        analyze: Called before a cure is looked for.
        patched: Called after the code has changed.
    """

    def __init__(
        self,
        session: Session,
        *,
        learning_rate_factor: float,
        analyze: Callable[[], None],
        patched: Callable[[], None],
    ) -> None:
        super().__init__(session, learning_rate_factor=learning_rate_factor)
        self._analyze = analyze
        self._patched = patched

    def apply(self, fault: Fault, guard: GuardBase) -> Outcome | None:
        """As `InsertClip`."""
        if fault.culprit is not None and fault.culprit.cause == "operator":
            self._analyze()
        outcome = super().apply(fault, guard)
        if outcome is not None:
            self._patched()
        return outcome


class RanumCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Guards Keras' `fit`: analysis before it, monitoring and recovery during it.

        model.fit(x, y, callbacks=[RanumCallback()])

    Before the first step the model's forward pass, loss and backward pass are analysed on the first
    batch; where only the graph sees the batches, on the first one that fails. Every step looks at
    its loss, its gradients and its weights in the graph, before the optimizer's update: if
    something is not finite or the gradient explodes, nothing is applied, and weights, moments,
    running statistics, the optimizer's iterations, metrics and random numbers are those of a run
    that never saw the batch. That holds under `jit_compile`, `steps_per_execution`, gradient
    accumulation, loss scaling, `run_eagerly`, custom training steps and `MirroredStrategy`. Then
    the step's first bad operator is named, and training goes on. Every tenth step also tells what
    the layers put out.

    Going back restores all variables, and trains the batches since the snapshot again where they
    are at hand: within an epoch, with one step per execution and one replica. Elsewhere the data
    goes on, and metrics start anew; the graph has kept the first faulty step's batch and weights,
    with which it is run again, but not under XLA, where no operator is named. A lowered learning
    rate is a factor on whatever rate or schedule the optimizer has; it lasts until `fit` ends.

    Not restored: Python's own state, such as that of other callbacks or of a generator of data.
    Not undone: the first of two updates by the same optimizer in one step; what a `train_step`
    changes besides Keras' variables. A step whose fault is about the run (`Diverged`) has been
    taken when it is found, and can only be gone back from.

    The training function is traced once more for the first `fit` with this callback, and not again
    in a second one without `compile` in between. After `fit` the model is what it was, and
    `model.save` never sees the guard. When another callback raises, the model's `train_function`
    goes back to Keras' own when it is called next.

    Args:
        analyze: "step" analyses the first training step; "off" does not.
        on_fault: Remedies, mildest first: "retry", "skip", "clip_gradients" (which clips for a
            while at twice the usual norm if a gradient explodes, before the optimizer's own
            clipping), "clip" (which goes back and inserts the cure that the analysis has for the
            operator that failed), "rollback". When none is left, training stops.
        symptoms: The rules that watch the run; `ranum.guards.default_symptoms()` if None.
        sample_every: Steps between readings of every layer: norms of gradients and weights, range
            of what it puts out, dead and saturated units.
        snapshot_every: Steps between snapshots for going back to.
        confirm_seconds: Time for proving defects by failing inputs, wall clock; 0 proves none.
        log_dir: Where the report goes; "ranum_report" in the working directory if None.
        verbose: Tell the story in the terminal.
        strict: Raise Ranum's own faults instead of containing them.

    Raises:
        ArgumentError: If an argument breaks its rule, if Keras runs on a backend other than
            TensorFlow or torch, or, from `fit`, if two of these callbacks are in one run.
    """

    def __init__(
        self,
        analyze: Literal["step", "off"] = "step",
        on_fault: Sequence[RemedyName] = REMEDIES,
        *,
        symptoms: Sequence[Symptom] | None = None,
        sample_every: int = 10,
        snapshot_every: int = 50,
        confirm_seconds: float = 10.0,
        log_dir: str | Path | None = None,
        verbose: bool = True,
        strict: bool = False,
    ) -> None:
        super().__init__()
        if keras.config.backend() not in ("tensorflow", "torch"):
            raise ArgumentError(
                "KERAS_BACKEND must be 'tensorflow' or 'torch' for a RanumCallback; got "
                f"{keras.config.backend()!r}."
            )
        self.analyze = analyze_option(analyze)
        self.on_fault: tuple[RemedyName, ...] = remedies_option(on_fault, REMEDIES)
        self.symptoms = symptoms_option(symptoms)
        self.sample_every = steps_option("sample_every", sample_every)
        self.snapshot_every = steps_option("snapshot_every", snapshot_every)
        self.confirm_seconds = seconds_option("confirm_seconds", confirm_seconds)
        self.log_dir = path_option("log_dir", log_dir)
        self.verbose = bool(verbose)
        self.strict = bool(strict)
        self._session: Session | None = None
        self._guard: KerasGuard | None = None
        self._step: GuardedStep | None = None
        self._former: Any = None
        self._inner: Any = None
        self._rival: RanumCallback | None = None
        self._owner: Any = None
        self._is_armed = False
        self._has_run = False
        self._is_analysed = False
        self._has_new_patch = False
        self._epoch = 0
        self._known = 0

    # --- what a user may ask ----------------------------------------------------------------

    @property
    def analysis(self) -> Any:
        """The `Analysis` of the first step, or None."""
        return None if self._session is None else self._session.analysis

    @property
    def history(self) -> History:
        """Readings, findings and incidents of the run."""
        return History() if self._guard is None else self._guard.history

    # --- events -----------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        """Makes the guard, and stands in for the training function."""
        model = self.model
        other = getattr(model.train_function, "__self__", None)
        if isinstance(other, RanumCallback):  # of this run, or left by one that was broken off
            other._give_back()
            if other is not self:
                other._rival = self
        self._rival, self._has_run, self._is_analysed = None, False, False
        self._has_new_patch = False
        self._session = Session(
            directory=Path(self.log_dir or "ranum_report"),
            strict=self.strict,
            quiet=not self.verbose,
        )
        try:
            self._make(model)
        except Exception as fault:
            if self.strict:
                raise
            self._guard = None
            self._give_back()
            line = (
                f"Ranum could not start ({type(fault).__name__}: {fault}); training is not guarded."
            )
            warnings.warn(RanumWarning(line), stacklevel=2)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Batches of former epochs cannot come again."""
        self._epoch = int(epoch)
        if self._guard is not None:
            self._guard.batches.clear()
            self._guard.request_snapshot()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """The loss of the validation is one of the things that rules look at."""
        loss = (logs or {}).get("val_loss")
        if loss is not None and self._guard is not None and self._is_at_work:
            self._guard.validated(float(loss))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """The next call of the training function is of this run."""
        if self._rival is not None:
            rival, self._rival = self._rival, None
            rival._give_back()
            raise ArgumentError(
                "callbacks must hold one RanumCallback; got two, which would guard each other."
            )
        self._is_armed = True

    def on_train_end(self, logs: Any = None) -> None:
        """Gives the model back; writes the report."""
        self._give_back()
        self._finish("training finished")

    def _finish(self, outcome: str) -> None:
        session, guard = self._session, self._guard
        if session is not None:
            if session.patches:  # which are taken out now
                self._inner = None
                self._forget_functions()
            session.finish(self.history, outcome)
            if guard is not None:
                with session.contained("the guard"):
                    guard.close()

    # --- standing in ------------------------------------------------------------------------

    def _make(self, model: Any) -> None:
        session = self._session
        assert session is not None
        if self._step is None or self._owner is not model or self._former is None:
            self._step = None
        if self._step is None or self._former is not model.train_function:
            self._step = GuardedStep(model, sample_every=self.sample_every)
            self._owner = model
            self._inner = None
            self._former = model.train_function
        factor = LEARNING_RATE_FACTOR
        make: dict[str, Callable[[], Remedy]] = {
            "retry": Retry,
            "skip": SkipWithheld,
            "clip_gradients": ClipWithheld,
            "clip": partial(
                InsertClipTraced,
                session,
                learning_rate_factor=factor,
                analyze=self._analyze_fault,
                patched=self._patched,
            ),
            "rollback": partial(Rollback, learning_rate_factor=factor),
        }
        self._guard = KerasGuard(
            self._step,
            remedies=[make[name]() for name in self.on_fault],
            symptoms=self.symptoms,
            sample_every=self.sample_every,
            snapshot_every=self.snapshot_every,
            strict=self.strict,
            incident_dir=session.incident_dir,
        )
        if self._inner is None:
            self._trace()
        model.train_function = self._train

    def _patched(self) -> None:
        """The code of the step is another one now; that of validation too."""
        self._trace()
        self._forget_functions()
        assert self._session is not None
        self._has_new_patch = bool(self._session.patches)

    def _forget_functions(self) -> None:
        self.model.test_function = self.model.predict_function = None

    def _trace(self) -> None:
        """Has Keras make a training function of the guarded step."""
        step = self._step
        assert step is not None
        former = step.model.train_function
        step.engine.forget_rows()
        step.forget_layers()
        try:
            with step.installed():
                step.model.make_train_function(force=True)
            self._inner = step.model.train_function
        finally:
            step.model.train_function = former
        self._known = len(step.variables())

    def _give_back(self) -> None:
        model = self._owner
        if model is not None and getattr(model.train_function, "__self__", None) is self:
            model.train_function = self._former
        self._is_armed = False

    def _train(self, data: Any) -> Any:
        """What `fit` calls in the place of the model's training function."""
        guard, session = self._guard, self._session
        if not self._is_armed or guard is None or session is None or not self._is_at_work:
            self._give_back()
            return self._former(data)
        self._is_armed = False
        try:
            return self._guarded(data, guard)
        except StopIteration:
            raise  # the data has come to its end
        except BaseException as error:
            self._give_back()
            if not isinstance(error, KeyboardInterrupt):
                self._finish(f"training ended by {type(error).__name__}")
            else:
                self._finish("training interrupted")
            raise

    @property
    def _is_at_work(self) -> bool:
        return (
            self._guard is not None
            and self._guard.is_on
            and self._session is not None
            and self._session.is_on("the guard")
        )

    def _guarded(self, data: Any, guard: KerasGuard) -> Any:
        assert self._step is not None
        batch = self._step.engine.batch_of(data, self._inner)
        if batch is None:  # only the graph can fetch it
            if not self._has_run:
                self._build(getattr(data, "element_spec", None))
            guard.begin()
            logs = self._run(lambda: self._inner(data), partial(self._former, data))
            self._decide(guard)
            return logs
        if not self._has_run:
            self._prepare(guard, batch)
        guard.batches.keep(batch)
        while True:
            batch = guard.batches.hand_out()
            guard.begin(batch)
            logs = self._run(
                partial(self._call_inner, batch), partial(self._call, self._former, batch)
            )
            self._decide(guard)
            if guard.batches.is_at_end or self.model.stop_training or not self._is_at_work:
                return logs

    def _call_inner(self, batch: Any) -> Any:
        return self._call(self._inner, batch)

    def _call(self, function: Any, batch: Any) -> Any:
        assert self._step is not None
        return self._step.engine.call(function, batch)

    def _run(self, work: Callable[[], Any], unguarded: Callable[[], Any]) -> Any:
        """One call of the guarded function; of Keras' own if it cannot be traced."""
        step, session = self._step, self._session
        assert step is not None
        assert session is not None
        try:
            with step.installed():
                logs = work()
        except StopIteration:
            raise
        except Exception as fault:
            if self._has_new_patch:
                return self._run_without_patch(fault, work, unguarded)
            if self.strict or self._has_run:
                raise
            logs = unguarded()  # raises if the fault is the user's
            line = f"the training step could not be guarded: {type(fault).__name__}: {fault}"
            warnings.warn(RanumWarning(f"Ranum: {line}"), stacklevel=4)
            session.faults.append(line)
            self._give_back()
            self._guard, self._step = None, None
            return logs
        self._has_new_patch = False
        if not self._has_run:
            self._has_run = True
            if len(step.variables()) != self._known:  # made by this very step
                with session.contained("the guard"):
                    self._trace()
        return logs

    def _run_without_patch(
        self, fault: Exception, work: Callable[[], Any], unguarded: Callable[[], Any]
    ) -> Any:
        """Once more, after a live patch was taken out that the step does not run with."""
        session = self._session
        assert session is not None
        self._has_new_patch = False
        line = f"a live patch was taken out again ({type(fault).__name__}: {fault})"
        session.faults.append(line)
        warnings.warn(RanumWarning(f"Ranum: {line}"), stacklevel=5)
        session.patches.pop().undo()
        self._patched()
        self._has_new_patch = False
        return self._run(work, unguarded)

    def _prepare(self, guard: KerasGuard, batch: Any) -> None:
        """Before the first step: all variables, and the analysis."""
        self._build(batch[0] if isinstance(batch, list) else batch)
        self._analyze(partial(guard.program, batch))

    def _analyze_fault(self) -> None:
        """The step that has failed, where no step was seen before."""
        program = None if self._guard is None else self._guard.program_at_hand
        if program is not None:
            self._analyze(lambda: program)

    def _analyze(self, program: Callable[[], Any]) -> None:
        session, step = self._session, self._step
        assert session is not None
        assert step is not None
        if self.analyze == "step" and not self._is_analysed:
            self._is_analysed = True
            with step.withheld():
                session.analyze(program, confirm_seconds=self.confirm_seconds)

    def _build(self, batch: Any) -> None:
        """Makes all variables, so that the step knows them when it is traced."""
        assert self._step is not None
        if hasattr(self.model, "_symbolic_build") and not self._step.engine.is_distributed:
            with suppress(Exception):  # then the step makes them, and is traced once more
                self.model._symbolic_build(data_batch=batch)
        self._step.forget_layers()
        self._known = len(self._step.variables())

    def _decide(self, guard: KerasGuard) -> list[Decision]:
        session = self._session
        assert session is not None
        decisions: list[Decision] = []
        if self._guard is None:
            return decisions
        with session.contained("the guard"):
            decisions = guard.decide(epoch=self._epoch)
        for decision in decisions:
            if _is_news(decision):
                session.decision(decision)
            if decision.stop:
                self.model.stop_training = True
        return decisions


def _is_news(decision: Decision) -> bool:
    """False for the steps between two samples, whose panels would cost more than their guard."""
    reading = decision.reading
    is_sampled = reading is None or reading.is_sampled
    return is_sampled or bool(decision.findings) or decision.incident is not None
