import os

import torch

import tests.remembered  # noqa: F401

# NNCF tells its makers of every call, except where it is tested; examples run in processes that are no pytest.
os.environ.setdefault("NNCF_CI", "1")
# The networks of the tests are too small for threads, which only get in each other's way.
torch.set_num_threads(1)
