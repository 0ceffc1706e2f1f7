"""The Fabric adapter: a plain loop's guard that leaves backward, precision and devices to Fabric.

Both namespaces, `lightning.fabric` and `lightning_fabric`, look alike from here: nothing of
either is imported.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from ranum.callbacks._options import path_option
from ranum.callbacks._session import Session
from ranum.errors import ArgumentError
from ranum.guards.guard import Decision, Guard, TrainingStopped

STRATEGIES = (
    "SingleDeviceStrategy",
    "DataParallelStrategy",
    "DDPStrategy",
    "ModelParallelStrategy",
)
"""Those whose processes see the same gradients, or parts that are known to be parts."""


class FabricGuard(Guard):
    """Guards a loop on Lightning Fabric.

        fabric.launch()
        model, optimizer = fabric.setup(model, optimizer)
        loader = fabric.setup_dataloaders(loader)
        with FabricGuard(fabric, model, optimizer) as guard:
            for x, y in guard.batches(loader):
                with guard.step((x, y)) as step:
                    step.backward(lambda: loss_fn(model(x), y))

    `step.backward` goes through `fabric.backward`, and the step through Fabric's optimizer, so
    precision plugins and their scalers are at work; it may stand inside
    `fabric.no_backward_sync`, once for each micro-batch. On several processes all decide alike.
    Everything else is as in `Guard`. Incidents, panels and the report are those of the Lightning
    callback; `fabric.save(path, {"guard": guard, ...})` keeps the guard's state.

    Args:
        fabric: The `Fabric`, after `launch`.
        model: What `fabric.setup` has returned.
        optimizer: What `fabric.setup` has returned; one or a list of them.
        log_dir: Where the report and incidents go; "ranum_report" in the first logger's directory
            if None, or in the working directory.
        verbose: Tell the story in the terminal.
        **options: As for `Guard`, but for `scaler`, `backward`, `incident_dir` and `agree`.

    Raises:
        ArgumentError: If an argument breaks its rule, or the strategy is one whose gradients
            a guard could not judge.
    """

    def __init__(
        self,
        fabric: Any,
        model: Any,
        optimizer: Any,
        *,
        log_dir: str | None = None,
        verbose: bool = True,
        **options: Any,
    ) -> None:
        if not hasattr(fabric, "backward") or not hasattr(fabric, "strategy"):
            raise ArgumentError(f"fabric must be a lightning Fabric; got {fabric!r}.")
        several = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
        for name, value, part in (
            ("model", model, "_forward_module"),
            *(("optimizer", one, "optimizer") for one in several),
        ):
            if not hasattr(value, part):
                raise ArgumentError(
                    f"{name} must be what fabric.setup has returned; got {type(value).__name__}."
                )
        strategy = type(fabric.strategy).__name__
        if strategy not in STRATEGIES:
            raise ArgumentError(f"fabric's strategy must be one of {STRATEGIES}; got {strategy}.")
        directory = _directory(path_option("log_dir", log_dir), fabric)
        self._fabric = fabric
        self.session = Session(
            directory=directory,
            writer=_summary_writer(fabric),
            show=fabric.is_global_zero,
            quiet=not verbose,
            strict=bool(options.get("strict", False)),
        )
        super().__init__(
            model.module,
            several,
            scaler=getattr(fabric.strategy.precision, "scaler", None),
            backward=fabric.backward,
            incident_dir=directory / "incidents",
            **options,
        )

    def __enter__(self) -> FabricGuard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        elif isinstance(error, TrainingStopped):
            self.close(f"training was stopped: {error}")
        else:
            self.close(f"training was broken off by {type(error).__name__}: {error}")

    def decide(self, loss: Tensor | float | None = None, *, epoch: int = 0) -> Decision:
        """As `Guard.decide`; shows and logs what it brought."""
        decision = super().decide(loss, epoch=epoch)
        self.session.decision(decision)
        if decision.reading is not None and decision.reading.is_sampled:
            with self.session.contained("logging"):
                self._log(decision)
        return decision

    def close(self, outcome: str = "training finished") -> None:
        """Writes the report, removes all hooks and frees the snapshots.

        Args:
            outcome: How training ended, for the report.
        """
        if not self.session.outcome:
            self.session.outcome = outcome
            self.session.finish(self.history, outcome)
        super().close()

    def _log(self, decision: Decision) -> None:
        reading = decision.reading
        assert reading is not None
        values = {"loss": reading.loss, "grad_norm": reading.grad_norm}
        metrics = {f"ranum/{name}": value for name, value in values.items() if value is not None}
        metrics["ranum/incidents"] = float(len(self.history.incidents))
        for logger in self._fabric.loggers:
            if not _is_board(getattr(logger, "experiment", None)):  # those have the panels
                logger.log_metrics(metrics, step=reading.step)


def _directory(given: str | Path | None, fabric: Any) -> Path:
    if given is not None:
        return Path(given)
    base = next((getattr(logger, "root_dir", None) for logger in fabric.loggers), None)
    return Path(base or ".") / "ranum_report"


def _summary_writer(fabric: Any) -> Any:
    experiments = [getattr(logger, "experiment", None) for logger in fabric.loggers]
    return next((one for one in experiments if _is_board(one)), None)


def _is_board(experiment: Any) -> bool:
    """True for a `SummaryWriter` of TensorBoard."""
    return hasattr(experiment, "add_custom_scalars") and hasattr(experiment, "add_scalar")
