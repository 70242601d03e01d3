"""Loaded into LiteLLM beside the agent: puts faults into the live agent, hides LiteLLM's private attributes
from it, and says what it has changed. On request by a file, as control.py.
"""

import asyncio
import functools
import json
import logging
import math
import os
import sys

import litellm


class Boom(Exception):
    """What is injected."""


# The code in which the agent's hooks touch the agent first: that is where they fail.
HOOKS = {
    "at the door": "came",
    "filter": "filter",
    "check": "check",
    "deployment hook": "before_call",
    "stamp": "log_pre_api_call",
    "success": "success",
    "failure": "async_log_failure_event",
    "failure of an attempt": "async_post_call_failure_deployment_hook",
    "final failure": "async_post_call_failure_hook",
}
# Deeper: what several hooks, or the ledger's thread, depend on.
PARTS = {
    "refresh": ("Adapter", "refresh"),
    "turn": ("Ledger", "turn"),
    "books": ("Adapter", "books_of"),
    "estimate": ("Estimates", "need"),
    "clock": ("Agent", "tick"),
    "reservation": ("Ring", "charge"),
    "settlement": ("Ring", "settle"),
    "answer": ("Book", "apply"),
    "report": ("Ledger", "report"),
}


class Between:
    """Stands between the hooks and the agent, and fails in the hooks that are to fail."""

    def __init__(self, agent):
        self._whole, self._broken = agent, {}

    def __getattr__(self, name):
        where = sys._getframe(1).f_code.co_name
        if where in self._broken and name not in ("fault", "stamps_known"):
            raise Boom(self._broken[where])
        return getattr(self._whole, name)


class Breaker:
    """Everything that is broken now, and how to mend it."""

    def __init__(self, module):
        self.module, self.agent = module, module._agent
        self.hooks = self.agent.adapter.handler
        self.hooks.agent = self.between = Between(self.agent)
        self.mends, self.away = [], 0
        away = module._ledger.away

        def counted(*args, **more):
            self.away += 1
            return away(*args, **more)

        module._ledger.away = counted
        self.attempts, self.ends = [], {}
        reserve, end = self.agent.reserve, self.agent.end

        def reserving(*args, **more):
            attempt = reserve(*args, **more)
            if attempt is not None:
                self.attempts.append(attempt)
            return attempt

        def ending(attempt, total=None, **how):
            if not attempt.ended:
                known = "unknown" if total is None else "reported"
                self.ends[id(attempt)] = next((word for word, true in how.items() if true), known)
            return end(attempt, total=total, **how)

        self.agent.reserve, self.agent.end = reserving, ending

    def replace(self, owner, name, value):
        before = getattr(owner, name)
        setattr(owner, name, value)
        self.mends.append(lambda: setattr(owner, name, before))

    def fail(self, what, text):
        """Makes one hook, or one part, raise."""
        if what in HOOKS:
            self.between._broken[HOOKS[what]] = text
            return

        def fails(*args, **more):
            raise Boom(text)

        kind, name = PARTS[what]
        self.replace(getattr(self.module, kind), name, fails)

    def forget(self):
        """A minute passes: faults are no problem any more, and are logged again."""
        self.agent.faults.clear()
        self.agent.logged.clear()

    def mend(self):
        """Takes away all that was done."""
        self.between._broken.clear()
        for undo in reversed(self.mends):
            undo()
        self.mends.clear()

    def spoil(self, uid):
        """Answers to one TokenBudget cannot be taken in."""
        apply = self.module.Book.apply

        def fails(book, *args):
            if book.governor.uid == uid:
                raise Boom("injected")
            return apply(book, *args)

        self.replace(self.module.Book, "apply", fails)

    def clean(self):
        """Mends, and nothing of it is left for the next test to see."""
        self.mend()
        self.agent.adapter.missing.clear()

    # -- a LiteLLM that has renamed something

    def owner(self, name):
        server = sys.modules["litellm.proxy.proxy_server"]
        router = server.llm_router
        return {
            "litellm": lambda: litellm,
            "caching": lambda: sys.modules["litellm.caching.caching"],
            "proxy_server": lambda: server,
            "router": lambda: router,
            "v2": lambda: router.lowesttpm_logger_v2,
            "check": lambda: checks(router)[0],
        }[name]()

    def hide(self, what):
        """The agent does not find an attribute any more, LiteLLM does; the agent begins anew."""
        owner_name, name = what.split(".")
        owner, agents = self.owner(owner_name), self.module.__name__
        kind = type(owner)

        class Hiding(kind):
            def __getattribute__(self, asked):
                if asked == name and sys._getframe(1).f_globals.get("__name__") == agents:
                    raise AttributeError(f"{owner_name} has no {name}")
                return super().__getattribute__(asked)

        Hiding.__name__ = kind.__name__
        self.afresh()
        owner.__class__ = Hiding
        self.mends.append(lambda: setattr(owner, "__class__", kind))

    def stretch(self):
        """LiteLLM passes one argument more to every hook."""
        for name in vars(type(self.hooks)):
            if name.startswith(("async_", "log_")):
                hook = getattr(self.hooks, name)
                setattr(self.hooks, name, functools.partial(hook, unheard_of=1))
                self.mends.append(functools.partial(delattr, self.hooks, name))

    def crowd(self):
        """There are as many callbacks as LiteLLM allows, and the agent's is not one of them."""
        self.afresh()
        self.replace(sys.modules["litellm.litellm_core_utils.logging_callback_manager"], "MAX_CALLBACKS", 0)

    def afresh(self):
        """As in a process in which the agent has seen nothing of LiteLLM yet."""
        adapter, handler = self.agent.adapter, self.hooks
        adapter.counters.restore()
        adapter.quieten(False)
        for row in adapter.seen.values():
            adapter.write(row[0], row, [])
        for known in (adapter.seen, adapter.matched, adapter.identities, adapter.missing):
            known.clear()
        adapter.router, adapter.declared_rows, adapter.dirty = None, None, True
        for name, value in vars(litellm).items():
            if isinstance(value, list) and name.endswith(("callback", "callbacks")):
                value[:] = [c for c in value if c is not handler]
        server = sys.modules["litellm.proxy.proxy_server"]
        server.proxy_shutdown_event = getattr(
            server.proxy_shutdown_event, "__wrapped__", server.proxy_shutdown_event
        )

    # -- what there is to see

    def look(self):
        agent, ledger = self.agent, self.module._ledger
        boot, wall = agent.clock.boot(), agent.clock.wall()
        return {
            "failed calls": self.away,
            "down": ledger.down,
            "faults": list(agent.faults),
            "problems": agent.problems(),
            "lost": [g.name for g in agent.governors.values() if g.lost(boot, wall)],
            "acting": {g.uid: g.acting(boot, wall) for g in agent.governors.values()},
            "attempts": [
                [one.call_id, self.ends.get(id(one), "open"), sum(charge.amount for _, charge in one.charges)]
                for one in self.attempts[-30:]
            ],
            "unsent": sum(b.ring.unsent for g in agent.governors.values() for b in g.books.values()),
            "spent": {
                f"{b.limit}/{b.unit}": math.ceil(b.ring.spent)
                for g in agent.governors.values()
                for b in g.books.values()
            },
        }


def checks(router):
    return [c for c in router.optional_callbacks or [] if type(c).__name__ == "ModelRateLimitingCheck"]


def changeable():
    """Everything in LiteLLM that the agent may change while it governs."""
    from litellm.proxy import proxy_server

    router = proxy_server.llm_router
    owners = {"v2": router.lowesttpm_logger_v2, **{f"check {i}": c for i, c in enumerate(checks(router))}}
    return {
        "model_list": {
            d["model_info"]["id"]: json.loads(json.dumps(d, default=str)) for d in router.model_list
        },
        "caches": {
            f"{name}.{key}": "the router's" if value is router.cache else f"its own ({id(value)})"
            for name, owner in owners.items()
            for key, value in vars(owner).items()
            if key.endswith("_cache")
        },
        "filters": {
            name: [type(f).__name__ for f in logging.getLogger(name).filters]
            for name in (
                "LiteLLM",
                "LiteLLM Router",
                "LiteLLM Proxy",
                "uvicorn",
                "uvicorn.access",
                "uvicorn.error",
            )
        },
    }


breaker = None


def run(command):
    global breaker
    what = command["do"]
    if what == "changeable":
        return changeable()
    if breaker is None:
        breaker = Breaker(sys.modules["tokenbudget_agent"])
    if what == "fail":
        breaker.fail(command["what"], command["text"])
    elif what == "hide":
        breaker.hide(command["what"])
    elif what == "spoil":
        breaker.spoil(command["uid"])
    elif what == "redis":
        os.environ["TOKENBUDGET_REDIS_URL"] = command["url"]
        with breaker.module._ledger.calls:
            breaker.module._ledger.drop()
    elif what in ("mend", "clean", "forget", "crowd", "stretch"):
        getattr(breaker, what)()
    return breaker.look()


def serve():
    """Runs break.json, if there is one, and answers in broken.json."""
    try:
        with open("break.json") as file:
            command = json.load(file)
        os.remove("break.json")
    except (OSError, ValueError):
        return
    try:
        result = run(command)
    except Exception as error:
        result = {"error": repr(error)}
    with open("broken.tmp", "w") as file:
        json.dump(result, file)
    os.rename("broken.tmp", "broken.json")


def cannot_start():
    """A startup hook before the agent's: its thread will not start."""
    import tokenbudget_agent

    def fails(thread):
        raise RuntimeError("can't start new thread")

    tokenbudget_agent.Ledger.start = fails


async def watch():
    while True:
        await asyncio.sleep(0.02)
        serve()


def start():
    asyncio.get_running_loop().create_task(watch())
