"""One Hypothesis profile for all tests: no deadline, and under CI the same examples each time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from dataflows.kernel_cache import drop_stale_kernels
from tests.kafka_server import leave_broker, shared_broker

settings.register_profile(
    "headrace",
    deadline=None,  # the first example of a test may compile a kernel
    derandomize="CI" in os.environ,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("headrace")

drop_stale_kernels()  # numba does not see that a function called by a kernel has changed


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Kafka that the whole run shares: topics are a test's own, the broker is not."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    yield shared_broker(folder)
    leave_broker(folder)
