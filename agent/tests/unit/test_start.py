"""The two heartbeats, and a process that was forked."""

import asyncio
import sys
import threading
from types import SimpleNamespace

import pytest
from support import rendering
from support.calls import attempt
from support.member import until


def watched(tb, agent, condition):
    async def run():
        watching = asyncio.ensure_future(tb.watch(agent))
        async with asyncio.timeout(5):
            while not condition():
                assert not watching.done(), watching
                await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(run())


@pytest.fixture
def watchable(agent):
    agent.adapter.refresh = lambda: None
    return agent


@pytest.mark.parametrize("where", ["tick", "may_rest"])
def test_no_fault_ends_the_light_loop(tb, watchable, clock, where, monkeypatch):
    failed = []

    def fails(*args, **more):
        failed.append(where)
        raise RuntimeError("injected")

    monkeypatch.setattr(watchable, where, fails)
    watched(tb, watchable, lambda: len(failed) > 2)
    assert watchable.problems() == ["watch: RuntimeError: injected"]


@pytest.mark.parametrize(
    ("ledger", "expected"),
    [
        (SimpleNamespace(is_alive=lambda: False, stopping=False), True),
        (SimpleNamespace(is_alive=lambda: False, stopping=True), False),
        (SimpleNamespace(is_alive=lambda: True, stopping=False), False),
        (None, False),
    ],
)
def test_a_thread_that_has_ended_is_a_problem(tb, watchable, monkeypatch, ledger, expected):
    said = []
    monkeypatch.setattr(tb, "_ledger", ledger)
    monkeypatch.setattr(watchable.adapter, "problem", lambda *args: said.append(args), raising=False)
    watched(tb, watchable, lambda: said)
    assert [(name, text is not None) for name, text in said] == [("ledger", expected)]


def test_a_forked_process_does_not_wait_for_a_thread_that_it_does_not_have(tb, agent, monkeypatch):
    asyncio.run(attempt(tb, agent, "a", 1000))
    monkeypatch.setattr(tb, "_agent", agent)
    monkeypatch.setattr(tb, "_ledger", None)
    monkeypatch.setattr(tb.Ledger, "start", lambda ledger: None)
    monkeypatch.setattr(tb, "watch", lambda agent: asyncio.sleep(0))
    held, over = threading.Event(), threading.Event()

    def holds(lock):
        with lock:
            held.set()
            over.wait(20)

    holder = threading.Thread(target=holds, args=(agent.lock,))
    holder.start()
    assert held.wait(5)

    async def restarts():
        tb.restart_after_fork()

    child = threading.Thread(target=lambda: asyncio.run(restarts()), daemon=True)
    child.start()
    try:
        until(lambda: not child.is_alive(), 5)
    finally:
        over.set()
        holder.join()
    assert not agent.attempts
    assert not agent.waiting.waiters
    assert [book.ring.spent for book in agent.adapter.books_of(None)] == [0, 0]


@pytest.mark.parametrize("missing", ["redis", "litellm.integrations.custom_logger"])
def test_what_cannot_be_imported_is_said_and_ends_nothing(tb, tmp_path, monkeypatch, caplog, missing):
    """LiteLLM raises on what its startup hook raises, the import of it, too."""
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setitem(sys.modules, "tokenbudget_agent", tb)  # and puts it back
    without = rendering.load(rendering.write(tmp_path))
    with caplog.at_level("ERROR", "tokenbudget"):
        without.start()
    (record,) = caplog.records
    assert "LiteLLM runs without it" in record.message
    assert missing in str(record.exc_info[1])
    assert (without._agent, without._ledger) == (None, None)
