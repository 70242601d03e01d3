"""Which of LiteLLM's selectors count in this process alone, and what they count for Redis meanwhile."""

import sys
import types

import pytest


class Cache:
    """LiteLLM's DualCache."""


class LowestTPMLoggingHandler_v2:  # noqa: N801 (LiteLLM's name)
    def __init__(self, cache):
        self.router_cache = self.dual_cache = cache
        self.redis_increment_operation_queue = []


@pytest.fixture
def fleets(monkeypatch):
    for name in ("litellm.caching", "litellm.caching.caching"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["litellm.caching.caching"].DualCache = Cache
    return Cache()


def test_each_selector_that_goes_by_usage_counts_for_itself_and_gets_the_fleets_counters_back(tb, fleets):
    handlers = [LowestTPMLoggingHandler_v2(fleets) for _ in range(3)]
    other = types.SimpleNamespace(router_cache=fleets)  # latency-based-routing keeps its own there
    router = types.SimpleNamespace(
        lowesttpm_logger_v2=handlers[0],
        _group_selectors={"a": {"usage-based-routing-v2": handlers[1], "latency-based-routing": other}},
        _override_selectors={},
    )
    counters = tb.LocalCounters()
    assert not any(counters.localize(router).values())
    router._override_selectors["usage-based-routing-v2"] = handlers[2]  # made by the first that asks for it
    assert handlers[2].router_cache is fleets
    counters.localize(router)
    assert not any(fleets in (h.router_cache, h.dual_cache) for h in handlers)
    assert len({id(h.router_cache) for h in handlers}) == 3
    assert other.router_cache is fleets
    counters.restore()
    assert all(h.router_cache is h.dual_cache is fleets for h in handlers)


def test_what_is_counted_for_redis_is_dropped_and_never_sent_there(tb, fleets):
    handler = LowestTPMLoggingHandler_v2(fleets)
    router, counters = types.SimpleNamespace(lowesttpm_logger_v2=handler), tb.LocalCounters()
    counters.localize(router)
    queue = handler.redis_increment_operation_queue
    queue += [{"key": "d1:gpt:rpm:12-00"}] * 2000
    counters.localize(router)  # each second
    assert not queue
    queue.append({"key": "d1:gpt:rpm:12-00"})
    counters.restore()
    assert not queue, "the fleet's counters would get it"


def test_a_fleets_own_queue_is_left_alone(tb, fleets):
    handler = LowestTPMLoggingHandler_v2(fleets)
    handler.redis_increment_operation_queue.append({})
    tb.LocalCounters().restore()
    assert handler.redis_increment_operation_queue == [{}]
