"""Common set-up: one thread for each test process, so that parallel runs do not fight over the cores; no deadlines."""

import os

import torch
from hypothesis import settings
from torch.utils.data._utils import signal_handling

settings.register_profile("any machine", deadline=None)  # a busy machine is no failure
settings.load_profile("any machine")

if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start: the last bits depend on it

# With a handler of SIGCHLD, which data loaders with workers install, the end of a child process has crashed Python
# after OpenVINO had computed with AMX in the same thread. Without it, loaders notice lost workers a few seconds later.
signal_handling._SIGCHLD_handler_set = True
