import os

import torch
from hypothesis import HealthCheck, settings

import tests.warm  # noqa: F401

# The same examples every time: what fails was in the change. `make nightly` draws others.
settings.register_profile("drawn", database=None, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("landing", settings.get_profile("drawn"), derandomize=True)
settings.load_profile(os.environ.get("DFFG_HYPOTHESIS", "landing"))
# What the terminal of whoever runs the tests is like.
for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)
# Ray's workers stand behind everything else on the machine by default, and are killed where its memory is used up.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
# NNCF tells its makers of every call, except where it is tested; examples run in processes that are no pytest.
os.environ.setdefault("NNCF_CI", "1")
# The networks of the tests are too small for threads, which only get in each other's way.
torch.set_num_threads(1)
