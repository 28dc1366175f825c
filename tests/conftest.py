"""One Hypothesis profile for all tests: no deadline, and under CI the same examples each time."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

from dataflows.kernel_cache import drop_stale_kernels

settings.register_profile(
    "headrace",
    deadline=None,  # the first example of a test may compile a kernel
    derandomize="CI" in os.environ,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("headrace")

drop_stale_kernels()  # numba does not see that a function called by a kernel has changed
