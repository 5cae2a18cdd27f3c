"""Common set-up: one thread for each test process, so that parallel runs do not fight over the cores."""

import os

import torch

if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)
