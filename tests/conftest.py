"""Common set-up: one thread for each test process, so that parallel runs do not fight over the cores; no deadlines."""

import os

import torch
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy machine is no failure
settings.load_profile("any machine")

if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start: the last bits depend on it
