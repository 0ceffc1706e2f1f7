"""What tables of backward operators share.

Where an operator receives what the forward pass made of its input, `derived` makes it so.
"""

from __future__ import annotations

import torch

SINGLE = (torch.float32,)
MIXED = (torch.float32, torch.bfloat16)


def derived(**makers):
    """Arguments rewritten by functions of the others, in order."""

    def constrain(arguments):
        arguments = dict(arguments)
        for name, make in makers.items():
            arguments[name] = make(arguments).to(arguments[name].dtype)
        return arguments

    return constrain
