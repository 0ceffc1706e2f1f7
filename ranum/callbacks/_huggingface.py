"""The Hugging Face adapter: a `TrainerCallback` over the guard.

The Trainer shows its callbacks neither batch nor loss, and gradients only after they have been
clipped. Both are seen where they pass: hooks of the model see its inputs and its loss, and the end
of the backward pass is told by autograd. Batches cannot come again, for the Trainer counts them
off; the callback trains the steps since the snapshot once more itself, as the Trainer would.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ranum.analysis.capture.program import Program
from ranum.callbacks._options import (
    analyze_option,
    interval_option,
    path_option,
    remedies_option,
    seconds_option,
    states_option,
    symptoms_option,
)
from ranum.callbacks._remedies import InsertClip
from ranum.callbacks._session import Session
from ranum.callbacks._steps import MicroBatch, Step, StepLog, loss_of, nothing
from ranum.errors import MissingExtraError, RanumWarning
from ranum.guards._places import checked_place
from ranum.guards.guard import Decision, Guard
from ranum.guards.recovery import ClipGradients, Remedy, Retry, Rollback, Skip
from ranum.guards.symptoms import Symptom, default_symptoms
from ranum.guards.types import History

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtraError("transformers", "huggingface", "RanumCallback") from error

RemedyName = Literal["retry", "skip", "clip_gradients", "clip", "rollback"]
REMEDIES: tuple[RemedyName, ...] = ("retry", "skip", "clip_gradients", "clip", "rollback")
LEARNING_RATE_FACTOR = 10**-0.5
"""As in Lightning: every way back lowers the learning rate by half a decade."""
GUARD_FILE = "ranum.json"
"""The guard's state, in the folder of each checkpoint."""


class RanumCallback(TrainerCallback):
    """Guards a Hugging Face training run: analysis before it, monitoring and recovery during it.

        Trainer(..., callbacks=[RanumCallback()])

    Before the first optimizer step the model's forward pass, loss and backward pass are analysed on
    the first batch. The loss and the gradients are checked before every optimizer step (before they
    are clipped, where no gradient scaler and no other process is involved); a faulty step is
    withheld and its first bad operator named. Going back restores weights, buffers, optimizer,
    schedule and random numbers, and trains the steps since the snapshot again: the result is that
    of a run without the fault. A batch left out counts neither in `global_step` nor in the
    learning rate's schedule.

    Not restored: the running mean of the loss that the Trainer logs (it replaces a loss that is
    not finite by the mean so far, unless `logging_nan_inf_filter=False`). Models that are compiled,
    or whose loss is computed outside of them (`compute_loss_func`, label smoothing), are checked by
    their gradients alone; then the culprit is not named and the data goes on.

    Args:
        analyze: "step" analyses the first training step; "off" does not.
        on_fault: Remedies, mildest first: "retry", "skip", "clip_gradients", "clip", "rollback".
            When none is left, training stops.
        symptoms: The rules that watch the run; `ranum.guards.default_symptoms()` if None.
        sample_every: Steps between readings of per-layer statistics; "auto" as in `Guard`.
        snapshot_every: Steps between snapshots for going back to; "auto" lets them take at most
            1 % of the training time.
        snapshot_to: Where they are kept: "auto", by what is free, "device", "host", "disk" or a
            folder.
        also: More that has to go back with the weights: modules, such as an average of them, and
            whatever has `state_dict` and `load_state_dict`. Steps that are trained again are not
            told to other callbacks: have an average follow the optimizer instead
            (`optimizer.register_step_post_hook`).
        vote: With several processes, ask all of them in each step; see `ranum.Guard`.
        confirm_seconds: Time for proving defects by failing inputs, wall clock; 0 proves none.
        log_dir: Where the report goes; "ranum_report" in the `output_dir` if None.
        verbose: Tell the story in the terminal.
        strict: Raise Ranum's own faults instead of containing them.

    Raises:
        ArgumentError: If an argument breaks its rule.
    """

    def __init__(
        self,
        analyze: Literal["step", "off"] = "step",
        on_fault: Sequence[RemedyName] = REMEDIES,
        *,
        symptoms: Sequence[Symptom] | None = None,
        sample_every: int | str = "auto",
        snapshot_every: int | str = 50,
        snapshot_to: str = "auto",
        also: Sequence[Any] = (),
        vote: bool = False,
        confirm_seconds: float = 10.0,
        log_dir: str | Path | None = None,
        verbose: bool = True,
        strict: bool = False,
    ) -> None:
        self.analyze = analyze_option(analyze)
        self.on_fault: tuple[RemedyName, ...] = remedies_option(on_fault, REMEDIES)
        self.symptoms = symptoms_option(symptoms)
        self.sample_every = interval_option("sample_every", sample_every)
        self.snapshot_every = interval_option("snapshot_every", snapshot_every)
        self.snapshot_to = checked_place(snapshot_to)
        self.also = states_option("also", also)
        self.vote = bool(vote)
        self.confirm_seconds = seconds_option("confirm_seconds", confirm_seconds)
        self.log_dir = path_option("log_dir", log_dir)
        self.verbose = bool(verbose)
        self.strict = bool(strict)
        self._session: Session | None = None
        self._guard: Guard | None = None
        self._handles: list[Any] = []
        self._reset()

    def _reset(self) -> None:
        for handle in self._handles:  # of a run that was broken off, which has no last event
            handle.remove()
        self._position = StepLog()
        self._handles = []
        self._step: Step | None = None
        self._expected = 0
        self._batches = 0
        self._is_ours = False
        self._is_analysed = False
        self._leaves_out = False

    # --- what a user may ask ----------------------------------------------------------------

    @property
    def analysis(self) -> Any:
        """The `Analysis` of the first step, or None."""
        return None if self._session is None else self._session.analysis

    @property
    def history(self) -> History:
        """Readings, findings and incidents so far."""
        return History() if self._guard is None else self._guard.history

    # --- events -----------------------------------------------------------------------------

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Makes the guard, and hooks the model."""
        self._reset()
        try:
            self._session = Session(
                directory=Path(self.log_dir or Path(args.output_dir) / "ranum_report"),
                show=state.is_world_process_zero,
                strict=self.strict,
                quiet=not self.verbose,
            )
            self._args = args
            self._model: nn.Module = model
            self._optimizer: Any = kwargs["optimizer"]
            self._scheduler: Any = kwargs["lr_scheduler"]
            self._loader: Any = kwargs.get("train_dataloader")
            self._make_guard(kwargs)
            self._load(args, state)
        except Exception as fault:
            if self.strict:
                raise
            self._guard = None
            line = (
                f"Ranum could not start ({type(fault).__name__}: {fault}); training is not guarded."
            )
            warnings.warn(RanumWarning(line), stacklevel=2)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts the epoch's batches anew."""
        self._batches = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A new optimizer step."""
        if self._is_at_work:
            self._step = Step(torch.get_rng_state())
            self._expected = self._micro_batches()
            if getattr(self._optimizer, "_is_overflow", False) and self._scaler is None:
                self._optimizer._is_overflow = False  # said in the step before, of that step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Decides, before the weights are touched; trains steps again after going back."""
        guard, session, step = self._guard, self._session, self._step
        if guard is None or session is None or step is None or not self._is_at_work:
            return None
        with session.contained("the guard"):
            if not step.parts:
                guard.begin()  # the model's calls are not seen
            elif not step.can_run:
                guard.withdraw_replays()
            elif self._is_alone and self._scaler is None:
                self._position.log.keep(step, step.random)
            decision = self._decide(step, state)
            while not decision.proceed and guard.is_rewound:
                self._position.is_again = True
                decision = self._train_again(state)
            self._position.is_again = False
            self._leaves_out = decision.leaves_out
            if decision.leaves_out:
                guard.snapshots.take_settings()
            if decision.stop:
                control.should_training_stop = True
        return control

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Has the schedule wait, after a step that was left out."""
        if self._leaves_out and hasattr(self._optimizer, "_is_overflow"):
            self._optimizer._is_overflow = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the step; one that was left out is not counted."""
        if self._guard is not None and self._session is not None and self._is_at_work:
            with self._session.contained("the guard"):
                if self._leaves_out:
                    state.global_step -= 1
                    self._guard.snapshots.restore_settings()
                self._guard.end()
                if control.should_save:
                    self._check_at_rest(state)
        self._leaves_out, self._step = False, None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Puts the guard's state beside the Trainer's, into the checkpoint's folder."""
        folder = _checkpoint(args, state)
        if self._guard is None or self._session is None or not state.is_world_process_zero:
            return
        with self._session.contained("saving the guard's state"):
            if folder.is_dir():
                text = json.dumps(self._guard.state_dict())
                (folder / GUARD_FILE).write_text(text, encoding="utf-8")

    def _load(self, args: Any, state: Any) -> None:
        """Goes on with the guard's state of the checkpoint that the Trainer has taken up."""
        file = _checkpoint(args, state) / GUARD_FILE
        assert self._session is not None
        if state.global_step and file.is_file() and self._guard is not None:
            with self._session.contained("loading the guard's state"):
                self._guard.load_state_dict(json.loads(file.read_text(encoding="utf-8")))
                self._is_analysed = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tells the guard the validation loss."""
        loss = (kwargs.get("metrics") or {}).get("eval_loss")
        if self._guard is not None and self._session is not None and loss is not None:
            with self._session.contained("the validation loss"):
                self._guard.validated(loss)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the report; takes hooks and live patches out."""
        session, guard = self._session, self._guard
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if session is None:
            return
        if guard is not None and self._is_at_work:
            with session.contained("the guard"):
                self._check_at_rest(state)
        session.finish(self.history, "training finished")
        if guard is not None:
            with session.contained("the guard"):
                guard.close()

    def _check_at_rest(self, state: Any) -> None:
        """Keeps a damaged state out of checkpoints, and out of what training ends with."""
        assert self._guard is not None
        assert self._session is not None
        decision = self._guard.check_at_rest(epoch=int(state.epoch or 0))
        if decision is not None:
            self._session.decision(decision)

    # --- one step ---------------------------------------------------------------------------

    @property
    def _is_at_work(self) -> bool:
        return (
            self._guard is not None
            and self._session is not None
            and self._session.is_on("the guard")
        )

    @property
    def _scaler(self) -> Any:
        scaler = getattr(self._optimizer, "scaler", None)
        return scaler if scaler is not None and scaler.is_enabled() else None

    @property
    def _is_alone(self) -> bool:
        distributed = torch.distributed
        return not (distributed.is_available() and distributed.is_initialized())

    def _micro_batches(self) -> int:
        """How many of them the step at hand has; 0 if that is not known."""
        whole: int = self._args.gradient_accumulation_steps
        try:
            left = len(self._loader) - self._batches
        except TypeError:
            return 1 if whole == 1 else 0
        return min(whole, left) if left > 0 else whole

    def _decide(self, step: Step, state: Any) -> Decision:
        assert self._guard is not None
        assert self._session is not None
        decision = self._guard.decide(step.loss, epoch=int(state.epoch or 0))
        self._session.decision(decision)
        return decision

    def _train_again(self, state: Any) -> Decision:
        """The steps since the mark that was gone back to; of the last one the gradients only."""
        guard, log = self._guard, self._position.log
        assert guard is not None
        last = log.end
        while True:
            guard.end()
            step: Step = log.hand_out(nothing)
            runs = [partial(self._run, part) for part in step.parts]
            for part, run in zip(step.parts, runs, strict=True):
                guard.begin(part.keywords, run)
            self._model.zero_grad(set_to_none=True)
            for run in runs:
                run()
            guard.measure(step.loss, epoch=int(state.epoch or 0))
            self._clip()
            decision = self._decide(step, state)
            if not decision.proceed:
                return decision
            if log.number == last:
                log.catch_up()
                return decision
            self._optimizer.step()
            if not isinstance(self._scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                self._scheduler.step()

    def _clip(self) -> None:
        most = self._args.max_grad_norm
        nn.utils.clip_grad_norm_(self._model.parameters(), most if most > 0 else torch.inf)

    def _run(self, part: MicroBatch) -> Tensor:
        """Forward and backward of one micro-batch, as the Trainer did it."""
        former, self._is_ours = self._is_ours, True
        try:
            with torch.enable_grad():
                loss = loss_of(self._model(*part.arguments, **part.keywords))
                assert loss is not None
                loss.backward(gradient=part.scale)
            part.loss = loss.detach()
            return part.loss
        finally:
            self._is_ours = former

    # --- hooks ------------------------------------------------------------------------------

    def _before(self, model: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
        step, guard, session = self._step, self._guard, self._session
        if self._is_ours or step is None or guard is None or session is None:
            return
        if not (model.training and torch.is_grad_enabled() and self._is_at_work):
            return
        part = MicroBatch(tuple(arguments), dict(keywords))
        if self.analyze == "step" and not self._is_analysed:
            self._is_analysed = True
            self._is_ours = True
            try:
                session.analyze(
                    partial(_program, model, part), confirm_seconds=self.confirm_seconds
                )
            finally:
                self._is_ours = False
        with session.contained("the guard"):
            step.parts.append(part)
            self._batches += 1
            guard.begin(part.keywords or part.arguments, partial(self._run, part))

    def _after(self, model: nn.Module, arguments: Any, output: Any) -> None:
        step = self._step
        loss = loss_of(output)
        if self._is_ours or step is None or not step.parts or loss is None:
            return
        if not loss.requires_grad:
            return
        part = step.parts[-1]
        part.loss = loss.detach()
        if self._guard is not None:
            self._guard.look(loss)

        def see(gradient: Tensor) -> None:
            part.scale = gradient.detach().clone()
            if len(step.parts) == self._expected and self._is_alone and self._scaler is None:
                engine: Any = torch.autograd.Variable._execution_engine
                engine.queue_callback(partial(self._backward_ends, step))

        loss.register_hook(see)

    def _backward_ends(self, step: Step) -> None:
        if self._guard is not None and self._session is not None and self._is_at_work:
            with self._session.contained("the guard"):
                self._guard.measure(step.loss)

    # --- the guard --------------------------------------------------------------------------

    def _make_guard(self, kwargs: Mapping[str, Any]) -> None:
        session = self._session
        assert session is not None
        factor = LEARNING_RATE_FACTOR
        make: dict[str, Callable[[], Remedy]] = {
            "retry": Retry,
            "skip": Skip,
            "clip_gradients": ClipGradients,
            "clip": partial(InsertClip, session, learning_rate_factor=factor),
            "rollback": partial(Rollback, learning_rate_factor=factor),
        }
        allowed = self.on_fault
        if not self._is_alone:
            allowed = tuple(name for name in allowed if name == "rollback")
            line = "with several processes only gradients are judged, and only rollbacks are tried"
            warnings.warn(RanumWarning(f"Ranum: {line}."), stacklevel=3)
        self._guard = Guard(
            self._model,
            self._optimizer,
            symptoms=default_symptoms() if self.symptoms is None else self.symptoms,
            remedies=[make[name]() for name in allowed],
            sample_every=self.sample_every,
            snapshot_every=self.snapshot_every,
            snapshot_to=self.snapshot_to,
            schedulers=[self._scheduler],
            scaler=self._scaler,
            strict=self.strict,
            position=self._position,
            incident_dir=session.incident_dir,
            also=self.also,
            vote=self.vote,
        )
        if self._args.torch_compile:
            line = "compiled models are checked by their gradients alone"
            warnings.warn(RanumWarning(f"Ranum: {line}."), stacklevel=3)
            return
        self._handles = [
            self._model.register_forward_pre_hook(self._before, with_kwargs=True),
            self._model.register_forward_hook(self._after),
        ]


def _checkpoint(args: Any, state: Any) -> Path:
    """The folder of the checkpoint of this step, where the Trainer puts it."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _program(model: nn.Module, part: MicroBatch) -> Program:
    def step(inputs: dict[str, Any]) -> Tensor | None:
        return loss_of(model(*part.arguments, **inputs))

    return Program(
        step=step,
        arguments=(part.keywords,),
        argument_names=("inputs",),
        model=model,
        parameters=dict(model.named_parameters()),
        backward=True,
        description=type(model).__name__,
    )
