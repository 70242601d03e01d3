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


def test_selectors_that_go_by_usage_count_in_the_process_and_get_the_fleets_counters_back(tb, fleets):
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
    shared = {id(cache) for h in handlers for cache in (h.router_cache, h.dual_cache)}
    assert len(shared) == 1, "LiteLLM tells only one of them what was used"
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


def test_a_selector_that_litellm_made_anew_goes_on_with_the_counts_and_the_old_one_is_let_go(tb, fleets):
    """LiteLLM rebuilds those of `routing_groups` with each look at its settings, every 30 s."""
    old, new = LowestTPMLoggingHandler_v2(fleets), LowestTPMLoggingHandler_v2(fleets)
    router = types.SimpleNamespace(_group_selectors={"a": {"usage-based-routing-v2": old}})
    counters = tb.LocalCounters()
    counters.localize(router)
    own = old.router_cache
    old.redis_increment_operation_queue.append({})
    router._group_selectors = {"a": {"usage-based-routing-v2": new}}
    counters.localize(router)
    assert new.router_cache is new.dual_cache is own
    assert old.router_cache is old.dual_cache is fleets
    assert not old.redis_increment_operation_queue
    assert {id(owner) for owner, _, _ in counters.replaced} == {id(new)}


def test_the_check_of_limits_counts_for_itself(tb, fleets):
    ModelRateLimitingCheck = type("ModelRateLimitingCheck", (), {"dual_cache": fleets})  # noqa: N806
    check, handler = ModelRateLimitingCheck(), LowestTPMLoggingHandler_v2(fleets)
    router = types.SimpleNamespace(lowesttpm_logger_v2=handler, optional_callbacks=[check])
    counters = tb.LocalCounters()
    counters.localize(router)
    assert len({id(fleets), id(check.dual_cache), id(handler.dual_cache)}) == 3
    counters.restore()
    assert check.dual_cache is handler.dual_cache is fleets


@pytest.mark.parametrize(
    "router",
    [
        {"routing_groups": {"a": object()}},
        {"_routing_groups": {"a": object()}, "_group_selectors": {}},
        {"_group_selectors": ["a"]},
        {"_group_selectors": {"a": ["b"]}},
        {"_override_selectors": "a"},
    ],
)
def test_groups_whose_selectors_are_not_where_they_were_are_a_problem(tb, fleets, router):
    problems = tb.LocalCounters().localize(types.SimpleNamespace(**router))
    assert "Router._group_selectors" in problems["groups"]


@pytest.mark.parametrize(
    "router", [{}, {"routing_groups": {}, "_group_selectors": {}, "_override_selectors": {}}]
)
def test_a_router_without_groups_is_no_problem(tb, fleets, router):
    assert not any(tb.LocalCounters().localize(types.SimpleNamespace(**router)).values())
