"""Settings for every test: one thread, repeatable property tests, no network."""

import multiprocessing
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "suite",
    deadline=None,  # the first call of an operator is slow and says nothing
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("suite")

# Tests that need processes of their own fork them from one server, which has imported the slow modules.
multiprocessing.set_forkserver_preload(["torch._dynamo", "multicontrast", "unihpe_ref.applications.run", "hypothesis"])
