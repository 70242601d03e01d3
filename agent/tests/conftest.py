"""Shared by the unit tests and the tests on real LiteLLM processes."""

import pytest
from support.fake_operator import Operator
from support.redis_server import RedisServer


@pytest.fixture
def redis_server(tmp_path):
    """A real redis-server of this test's own."""
    server = RedisServer(tmp_path).start()
    yield server
    server.stop()


@pytest.fixture
def operator(redis_server):
    """The operator's part, written straight into Redis."""
    return Operator(redis_server.client())
