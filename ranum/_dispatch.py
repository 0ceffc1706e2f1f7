"""The base of Ranum's dispatch modes: the recorder's, the probe's, the microscope's."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """A `TorchDispatchMode` that does not import Dynamo when it is first used.

    torch wraps `__torch_dispatch__` so that Dynamo leaves it alone, which costs more than a
    second of importing in processes that compile nothing. Ranum's modes run under the
    "force_eager" stance where Dynamo is loaded, so the wrapper has nothing to do.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
