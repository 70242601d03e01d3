"""The figures of the report: what was reserved beside what was used, the last whole minute, what went past
the router.
"""

import asyncio
import hashlib
import json

import pytest
from test_agent import attempt, books, done


@pytest.fixture
def governor(agent):
    """The TokenBudget, whose limit has one deployment."""
    agent.adapter.matched = {"d1": list(books(agent).values())}
    agent.adapter.named = {("uid-1", "gpt"): {"d1:openai/gpt"}}
    return agent.governors["uid-1"]


def figures(agent, governor, clock):
    return agent.figures(governor, clock.now)["limits"][0]


def test_what_was_reserved_beside_what_was_used(tb, agent, governor, clock):
    for number in range(100):
        asyncio.run(attempt(tb, agent, str(number), 100))
        charged = books(agent)["tokens"].ring.spent
        done(tb, agent, str(number), charged / (4 if number == 99 else 2))
        clock.now += 70
        books(agent)["tokens"].advance(clock.now, clock.now)
    assert figures(agent, governor, clock)["reserved"] == {"calls": 100, "p50": 200, "p99": 400}


def test_a_call_whose_usage_nobody_knows_is_not_in_it(tb, agent, governor, clock):
    asyncio.run(attempt(tb, agent, "a", 100))
    done(tb, agent, "a", 0)
    assert "reserved" not in figures(agent, governor, clock)


def test_the_last_whole_minute_is_what_ended_in_it(tb, agent, governor, clock):
    clock.now = 60 * 1000 + 30.0
    done(tb, agent, "half a minute", 5)
    assert "minute" not in figures(agent, governor, clock), "the first minute is not whole"
    clock.now += 60
    for number, tokens in enumerate((70, 30)):
        done(tb, agent, f"not reserved {number}", tokens)
    assert "minute" not in figures(agent, governor, clock)
    clock.now += 60
    assert figures(agent, governor, clock)["minute"] == {
        "at": 1001,
        "tokens": 100,
        "requests": 2,
        "waited": 0,
    }
    clock.now += 600
    assert figures(agent, governor, clock)["minute"] == {
        "at": 1011,
        "tokens": 0,
        "requests": 0,
        "waited": 0,
    }


def test_what_litellm_does_not_count_is_not_counted(tb, agent, governor, clock):
    clock.now = 60 * 1000.0
    done(tb, agent, "of another minute", 5)
    clock.now += 60
    done(tb, agent, "a session", 70, call_type="_arealtime")
    clock.now += 60
    assert figures(agent, governor, clock)["minute"]["tokens"] == 0


def test_a_request_that_waits_counts_once_for_the_limit_that_has_no_room(tb, agent, governor, clock):
    clock.now = 60 * 1000.0
    figures(agent, governor, clock)
    clock.now += 60
    for max_wait in (200, 0):  # the second fails at once
        governor.update({**governor.policy, "maxWaitMs": max_wait}, clock.now)
        with pytest.raises(tb.Refused):
            asyncio.run(attempt_in_time(tb, agent, clock, f"waits {max_wait}"))
    clock.now = 60 * 1002.0
    assert figures(agent, governor, clock)["minute"]["waited"] == 1


async def attempt_in_time(tb, agent, clock, call_id):
    """An attempt for which there is no room, and time that passes."""

    async def pass_time():
        while True:
            await asyncio.sleep(0.01)
            clock.now += 0.1

    passing = asyncio.ensure_future(pass_time())
    try:
        await attempt(tb, agent, call_id, 10 * books(agent)["tokens"].budget // 11)
    finally:
        passing.cancel()


def test_what_a_process_asked_of_the_ledger_is_reported(tb, agent, governor, clock):
    for second, beat in ((0, True), (60, True), (70, False), (80, False)):
        clock.now = 60_000.0 + second
        governor.calls.add(agent.minute(), beats=int(beat), draws=int(not beat))
    assert "calls" not in agent.figures(governor, clock.now), "the first minute is not whole"
    clock.now += 60
    assert agent.figures(governor, clock.now)["calls"] == {"at": 1001, "beats": 1, "draws": 2}


def test_what_goes_past_the_router_is_reported_for_five_minutes(tb, agent, governor, clock):
    hooks = tb.Hooks(agent)
    past = {"call_type": "pass_through_endpoint", "litellm_call_id": "p"}
    answer = {"response_body": {"usage": {"input_tokens": 30, "output_tokens": 4}}}
    for _ in range(2):
        hooks.log_pre_api_call("", None, past)
        asyncio.run(
            hooks.async_log_success_event({**past, "passthrough_logging_payload": answer}, None, None, None)
        )
        clock.now += 20
    asyncio.run(hooks.async_log_success_event({"call_type": "acreate_batch"}, None, None, None))
    expected = [
        {"kind": "batch", "requests": 1, "tokens": 0},
        {"kind": "passthrough", "requests": 2, "tokens": 68},
    ]
    assert agent.figures(governor, clock.now)["outside"] == expected
    clock.now += 310
    assert "outside" not in agent.figures(governor, clock.now)
    assert not agent.faults


def test_the_report_does_not_change_between_its_times(tb, agent, governor, clock):
    ledger = tb.Ledger(agent)
    first = ledger.report(governor, clock.now)
    assert json.loads(first)["limits"] == [{"name": "gpt", "deployments": ["d1:openai/gpt"]}]
    clock.now += tb.REPORT_EVERY - 1
    asyncio.run(attempt(tb, agent, "a", 100))
    done(tb, agent, "a", 50)
    assert ledger.report(governor, clock.now) == ""
    clock.now += 1
    assert json.loads(ledger.report(governor, clock.now))["limits"][0]["reserved"]["calls"] == 1


def test_before_there_is_a_router_nothing_is_said_of_limits(tb, agent, governor, clock):
    agent.adapter.declared_rows = None
    assert agent.figures(governor, clock.now) == {}


def test_the_agent_is_named_by_version_and_file(tb, agent, governor, clock):
    said = json.loads(tb.Ledger(agent).report(governor, clock.now))["agent"]
    with open(tb.__file__, "rb") as file:
        assert said == tb.AGENT_VERSION + "+" + hashlib.sha256(file.read()).hexdigest()[:12]


def test_no_more_than_twenty_deployments_are_named(tb, agent, governor, clock):
    agent.adapter.named = {("uid-1", "gpt"): {f"d{number:03}:m" for number in range(500)}}
    assert figures(agent, governor, clock)["deployments"] == [f"d{number:03}:m" for number in range(20)]


def test_the_declared_rows_are_gone_through_only_when_something_has_changed(
    tb, agent, governor, clock, monkeypatch
):
    ledger, asked = tb.Ledger(agent), []
    monkeypatch.setattr(agent.adapter, "declared_rows", [({"tokensPerMinute": 5}, set())])
    monkeypatch.setattr(agent.adapter, "declared", lambda governor: asked.append(governor) or [])
    assert ledger.report(governor, clock.now)
    for _ in range(10):
        clock.now += 0.1
        assert ledger.report(governor, clock.now) == ""
    assert len(asked) == 1
    agent.adapter.declared_rows = [({"tokensPerMinute": 6}, set())]
    assert ledger.report(governor, clock.now)
    agent.fault("here", ValueError("x"))
    assert "Degraded" in ledger.report(governor, clock.now)
    governor.update({**governor.policy, "version": "2"}, clock.now)
    assert json.loads(ledger.report(governor, clock.now))["policy"] == "2"
    assert ledger.report(governor, clock.now) == ""
    governor.reported = None  # a call failed
    assert ledger.report(governor, clock.now)
