"""Connectionist temporal classification and its gradient."""

import torch
from transfer_cases.harness import Arg, Case

WIDE = (torch.float32, torch.float64)
STEPS, BATCH, CLASSES = 6, 2, 4
LOGITS = Arg((STEPS, BATCH, CLASSES), low=-6.0, high=0.0)
LABELS = Arg((BATCH, 2), low=1, high=CLASSES - 1, dtype=torch.int64)
SPREAD = Arg((3,), low=1, high=CLASSES - 1, dtype=torch.int64, exact=True)
LENGTHS = [
    {"targets": LABELS, "input_lengths": [6, 4], "target_lengths": [2, 1]},
    {"targets": LABELS, "input_lengths": [6, 2], "target_lengths": [2, 2]},  # may not fit
    {"targets": SPREAD, "input_lengths": [6, 6], "target_lengths": [2, 1]},
    {"targets": LABELS, "input_lengths": [6, 6], "target_lengths": [2, 0]},
]


def loss(zero_infinity=False, **arguments):
    found, alpha = torch.ops.aten._ctc_loss(**arguments)
    return (torch.where(found.isinf(), 0.0, found) if zero_infinity else found), alpha


def gradient(arguments):
    """What the forward pass saves."""
    options = {
        key: arguments[key]
        for key in ("log_probs", "targets", "input_lengths", "target_lengths", "blank")
    }
    found, alpha = torch.ops.aten._ctc_loss(**options)
    return {**arguments, "neg_log_likelihood": found, "log_alpha": alpha}


CASES = [
    *(
        Case(
            "_ctc_loss",
            {"log_probs": LOGITS, **lengths, "blank": 0, "zero_infinity": zero},
            oracle=loss,
            dtypes=WIDE,
            wild=False,
            ignore=(1,),
        )
        for lengths in LENGTHS
        for zero in (False, True)
    ),
    *(
        Case(
            "_ctc_loss_backward",
            {
                "grad": Arg((BATCH,)),
                "log_probs": LOGITS,
                **lengths,
                "neg_log_likelihood": Arg((BATCH,)),
                "log_alpha": Arg((BATCH, STEPS, 5)),
                "blank": 0,
                "zero_infinity": zero,
            },
            constrain=gradient,
            dtypes=WIDE,
            wild=False,
        )
        for lengths in LENGTHS
        for zero in (False, True)
    ),
]
