"""RN303: the last activation is not the one that the loss expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, LossReading, Severity

_LOGITS = {
    "cross entropy": "softmax",
    "binary cross entropy with logits": "sigmoid",
}
_PROBABILITIES = ("softmax", "sigmoid")


@register
@dataclass(frozen=True, slots=True)
class OutputMismatch(Symptom):
    """The loss is given something else than it expects: probabilities for logits.

    What it finds:
        In the step's autograd graph, a cross entropy or a binary cross entropy with logits whose
        input comes straight from a softmax, a sigmoid, a tanh or a rectifier (views and casts
        between them do not count); a negative log likelihood of probabilities, or of anything
        that is larger than `peak`, which the logarithm of a probability cannot be.

    Why it matters:
        The loss applies its own softmax or sigmoid, so the logits it sees lie in [0, 1]: the
        largest probability of ten classes is 0.23, the loss cannot fall below 1.46, and
        gradients fade. Training goes on, slowly, and nothing else objects. A negative log
        likelihood of numbers that are not logarithms has no lower end at all.

    Thresholds and their source:
        peak 1e-3: a log-probability is at most 0; the rest is room for rounding in low
        precision. One sample is enough: the graph is a fact, not a statistic.

    Known misses:
        Losses written out by hand, compiled steps, and adapters that do not show the loss before
        the backward pass. Logits that are bounded on purpose: a tanh that is scaled afterwards
        is left alone, a bare one is not.

    Remedies:
        Give the loss what comes before the activation, and apply that only when predicting; or
        take the loss that belongs to it: `nll_loss` after `log_softmax`, `binary_cross_entropy`
        after `sigmoid`.

    Example:
        `F.cross_entropy(torch.softmax(logits, -1), labels)`.

    References:
        PyTorch, `torch.nn.CrossEntropyLoss`: "the input is expected to contain the unnormalized
        logits". Humbatova et al.: Taxonomy of real faults in deep learning systems, 2020,
        https://arxiv.org/abs/1910.11015
    """

    peak: float = 1e-3  # largest log-probability

    code: ClassVar[str] = "RN303"
    severity: ClassVar[Severity] = "warning"
    needs: ClassVar[Literal["step", "sample"]] = "sample"

    def __post_init__(self) -> None:
        self.require("peak")

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        for term in window.latest.loss_terms:
            message = self._problem(term)
            if message:
                return self.find(window, message, where=f"{term.kind} of {term.activation}".strip())
        return None

    def _problem(self, term: LossReading) -> str:
        own = _LOGITS.get(term.kind)
        if own is not None and term.activation:
            return (
                f"The {term.kind} is given the output of a {term.activation}, but applies a {own} "
                "itself; give it the values before."
            )
        if term.kind != "negative log likelihood":
            return ""
        if term.activation in _PROBABILITIES:
            return (
                f"The {term.kind} is given probabilities, straight from a {term.activation}; it "
                "expects their logarithms, as log_softmax gives them."
            )
        if term.peak is not None and term.peak > self.peak:
            return (
                f"The {term.kind} is given values up to {term.peak:.3g}; it expects logarithms of "
                "probabilities, which are at most 0, as log_softmax gives them."
            )
        return ""
