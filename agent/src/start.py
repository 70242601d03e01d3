"""Start and end, in each worker process."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading

from .adapter import Adapter
from .address import TlsConnection
from .agent import Agent
from .constants import REFRESH, TURN, log
from .governor import Governor
from .hooks import Hooks
from .ledger import Ledger
from .shapes import MaybeNone
from .waiting import Waiting

_agent: Agent | None
_ledger: Ledger | None
_agent = _ledger = None


def start() -> None:
    """The worker startup hook: runs in every worker process before the config is loaded. Never raises."""
    global _agent, _ledger
    try:
        if not log.handlers and not logging.getLogger().handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            log.addHandler(handler)
            log.propagate = False
        if _agent is not None and _agent.pid == os.getpid():
            return
        import_again()
        _agent = Agent()
        _agent.adapter = Adapter(_agent, Hooks(_agent))
        _agent.adapter.register()
        _ledger = Ledger(_agent)
        _ledger.read_policies()
        _ledger.start()
        atexit.register(leave)
        try:
            _agent.watcher = asyncio.get_running_loop().create_task(watch(_agent))
        except RuntimeError:
            _agent.adapter.problem("loop", "the startup hook ran outside of an event loop: not enforcing")
    except Exception:
        if _agent is not None:
            _agent.governors.clear()  # nothing would ever be lent to it
        log.exception("tokenbudget: the agent could not start, LiteLLM runs without it")


def import_again() -> None:
    """Raises what was left out at the top of the file."""
    from litellm.integrations.custom_logger import CustomLogger
    from redis import SSLConnection

    if not issubclass(Hooks, CustomLogger) or not issubclass(TlsConnection, SSLConnection):
        raise ImportError("redis or litellm could not be imported when this file was")


async def watch(agent: Agent) -> None:
    """A light loop beside LiteLLM: sees stalls of the event loop, keeps the callback registered and shares
    written. Looks every TURN while a request is on its way out, else when it is roused or has to."""
    next_refresh = 0.0
    while True:
        try:
            now = agent.clock.boot()
            agent.tick(now, turn=True)
            if agent.adapter.dirty or now >= next_refresh:
                next_refresh = now + REFRESH
                agent.watch_leases(now, agent.clock.wall())
                watch_ledger(agent)
                agent.adapter.refresh()
            elif agent.adapter.router is None:
                agent.adapter.register()
            if not agent.may_rest(now):
                await asyncio.sleep(TURN)
                continue
            agent.resting = asyncio.get_running_loop().create_future()
            soon = agent.adapter.router is None or agent.adapter.dirty  # another thread may have said so now
            await asyncio.wait([agent.resting], timeout=TURN if soon else max(TURN, next_refresh - now))
            agent.resting = None
        except Exception as error:  # the loop must live
            agent.fault("watch", error)
            await asyncio.sleep(TURN)


def watch_ledger(agent: Agent) -> None:
    """Without its thread nothing is lent any more, and nobody is told."""
    gone = _ledger is not None and not _ledger.is_alive() and not _ledger.stopping
    agent.adapter.problem("ledger", "the thread that talks to the ledger has ended" if gone else None)


def leave() -> None:
    """The final call. Not at SIGTERM: the process still serves then."""
    if _ledger is not None:
        try:
            _ledger.leave()
        except Exception:
            log.exception("tokenbudget: the final call failed")


def restart_after_fork() -> None:
    """A forked process is a new member with nothing lent to it."""
    global _ledger
    agent: Agent | MaybeNone = _agent
    agent.resting = None  # of a loop that goes on in the other process
    agent.lock = threading.RLock()  # a thread that is not here may have held it
    with agent.lock:
        agent.attempts.clear()
        agent.waiting = Waiting(agent)
        agent.recent.clear()
        agent.reset_identity()
        policies = [governor.policy for governor in agent.governors.values()]
        now = agent.clock.boot()
        agent.governors = {policy["uid"]: Governor(policy, now) for policy in policies}
        agent.adapter.changed()
    agent.last_tick = None
    _ledger = Ledger(agent)
    _ledger.start()
    agent.watcher = asyncio.get_running_loop().create_task(watch(agent))
