"""Starting a Lightning training over, inside the `fit` that is running.

All use of private parts of Lightning (2.4 and later) by Ranum is in this file: the fit loop's
data source, its combined loader, and its progress counters.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR

from ranum.callbacks._trials import has_choice_of_batch_size, load_state, with_batch_size
from ranum.repair.search.surgery import apply_configuration, build_optimizer


class Restart:
    """Starts training over from the initial weights under another configuration.

    Args:
        configuration: What `repair_configuration` found.
        initial: Parameters and buffers as they were when `fit` began, by name.
        loader: The Trainer's training loader, whose batch size may change.
    """

    def __init__(
        self, *, configuration: dict[str, Any], initial: dict[str, Tensor], loader: Any
    ) -> None:
        self.is_begun = False
        self._configuration = configuration
        self._initial = initial
        self._loader = loader
        self._val_check_batch: Any = None

    def begin(self, trainer: Any, pl_module: Any) -> None:
        """New weights and optimizer at once; the running epoch ends with this batch."""
        self.is_begun = True
        former = trainer.optimizers[0]
        load_state(pl_module, self._initial)
        known = {id(p) for p in pl_module.parameters()}
        apply_configuration(pl_module, self._configuration)
        groups = [dict(group) for group in former.param_groups]
        present = {id(p) for p in pl_module.parameters()}
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) in present]
        groups[0]["params"] += [p for p in pl_module.parameters() if id(p) not in known]
        pl_module.zero_grad(set_to_none=True)
        trainer.strategy.optimizers = [
            build_optimizer(
                self._configuration["optimizer"],
                groups,
                self._configuration["learning_rate"],
                like=former,
            )
        ]
        for config in trainer.strategy.lr_scheduler_configs:
            # A schedule made for the former optimizer would steer that one, not this, and
            # count beyond its end; without any, a module that asks for it would get None.
            config.scheduler = ConstantLR(trainer.optimizers[0], factor=1.0, total_iters=0)
            config.reduce_on_plateau, config.monitor = False, None
        clip = self._configuration.get("gradient_clip")
        if clip is not None:
            trainer.gradient_clip_val, trainer.gradient_clip_algorithm = clip or None, "norm"
        trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = True
        # The epoch ends with a validation, as callbacks that monitor its metrics expect.
        self._val_check_batch = trainer.val_check_batch
        trainer.val_check_batch = 1

    def rewind(self, trainer: Any) -> None:
        """The next epoch is epoch 0 again, over a loader with the new batch size."""
        fit_loop = trainer.fit_loop
        trainer.val_check_batch = self._val_check_batch
        size = self._configuration.get("batch_size")
        if size and has_choice_of_batch_size(self._loader) and size != self._loader.batch_size:
            source = fit_loop._data_source
            fit_loop._data_source = type(source)(with_batch_size(self._loader, size), "")
        fit_loop._combined_loader = None  # makes the loop set its data up again
        progress = fit_loop.epoch_progress.current
        progress.ready = progress.started = progress.processed = 0
        progress.completed = -1  # the loop counts the epoch that ends now
