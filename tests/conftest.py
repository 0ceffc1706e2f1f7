"""Settings of every test: one thread, fixed seeds, the same property-test examples each run."""

from __future__ import annotations

import gc
import random

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
gc.freeze()  # the libraries so far stay: a fifth of some tests' time went into looking at them

hypothesis.settings.register_profile(
    "ranum",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=False,
    max_examples=50,
)
hypothesis.settings.load_profile("ranum")


@pytest.fixture(autouse=True)
def seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
