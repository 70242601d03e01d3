"""Loaded into LiteLLM beside the agent: does to the live router what a database poll would do, on request by
a file.

Also a custom callback, named as ONE string in `litellm_settings.callbacks`: the form that drops other
callbacks.
"""

import asyncio
import ctypes
import gc
import json
import os
import sys
import time

from litellm.integrations.custom_logger import CustomLogger

handler = CustomLogger()
watched = []  # what "watch" has seen: every attempt, what it reserved, how it ended


async def watch():
    """Runs command.json and answers in result.json."""
    while True:
        await asyncio.sleep(0.05)
        try:
            with open("command.json") as file:
                command = json.load(file)
            os.remove("command.json")
        except (OSError, ValueError):
            continue
        try:
            result = run(command)
        except Exception as error:
            result = repr(error)
        with open("result.tmp", "w") as file:
            json.dump(result, file)
        os.rename("result.tmp", "result.json")


def run(command):  # noqa: PLR0911
    import litellm
    from litellm.proxy import proxy_server

    router = proxy_server.llm_router
    what = command["do"]
    if what == "add":
        from litellm.types.router import Deployment

        router.add_deployment(Deployment(**command["deployment"]))
    elif what == "upsert":
        return upsert(router, command["deployment"])
    elif what == "delete":
        router.delete_deployment(id=command["id"])
    elif what == "relist":  # a configuration that was read anew
        router.set_model_list(command["models"])
    elif what == "reload":
        router.set_model_list(
            [{k: v for k, v in d.items() if k not in ("tpm", "rpm")} for d in router.model_list]
        )
    elif what == "limits":
        return {d["model_info"]["id"]: [d.get("tpm"), d.get("rpm")] for d in router.model_list}
    elif what == "caches":
        checks = [c for c in router.optional_callbacks or [] if type(c).__name__ == "ModelRateLimitingCheck"]
        v2 = router.lowesttpm_logger_v2
        return {
            "local": v2.router_cache is not router.cache,
            "checks": [c.dual_cache is router.cache for c in checks],
        }
    elif what == "callbacks":
        return [type(c).__module__ for c in litellm.callbacks]
    elif what == "cooldowns":
        return list(
            router.cooldown_cache.get_active_cooldowns(
                model_ids=[d["model_info"]["id"] for d in router.model_list], parent_otel_span=None
            )
        )
    elif what == "collect":  # a call whose client left goes with the reference cycles that it is in
        gc.collect()  # Python looks for those when enough is made anew, which an idle process does not do
    elif what == "busy":  # the event loop stands still; with `alone` no other thread runs, either
        agent = sys.modules["tokenbudget_agent"]._agent
        before, end = allowed(agent), time.monotonic() + command["seconds"]
        if command["alone"]:
            ctypes.PyDLL(None).usleep(int(1e6 * command["seconds"]))  # keeps the interpreter's lock
        while time.monotonic() < end:
            pass
        return {"before": before, "after": allowed(agent)}
    elif what in ACCOUNTS:
        return ACCOUNTS[what](sys.modules["tokenbudget_agent"]._agent)
    return "done"


def allowed(agent):
    """What each limit lets this process have charged now, in tokens."""
    boot, wall = agent.clock.boot(), agent.clock.wall()
    with agent.lock:
        books = [book for governor in agent.governors.values() for book in governor.books.values()]
        for book in books:
            book.advance(boot, wall)
        return {book.limit: book.allowed(boot, wall) for book in books if book.unit == "tokens"}


class Watched:
    """One attempt, from its reservation on."""

    def __init__(self, attempt):
        self.attempt, self.how = attempt, "open"
        self.start, self.end, self.reserved = time.time(), None, self.amounts()

    def amounts(self):
        sums = {"tokens": 0.0, "requests": 0.0}
        for book, charge in self.attempt.charges:
            sums[book.unit] += charge.amount
        return sums

    def row(self):
        return {
            "call_id": self.attempt.call_id,
            "model": self.attempt.model.split("/")[-1],
            "how": self.how,
            "reserved": self.reserved,
            "charged": self.amounts(),
            "start": self.start,
            "end": self.end,
        }


def watch_attempts(agent):
    """Wraps what opens and what ends attempts. Only an attempt's first end counts."""
    reserve, end, by_id = agent.reserve, agent.end, {}

    def reserving(*args, **more):
        attempt = reserve(*args, **more)
        if attempt is not None:
            watched.append(Watched(attempt))
            by_id[id(attempt)] = watched[-1]
        return attempt

    def ending(attempt, **how):
        if not attempt.ended and id(attempt) in by_id:
            words = [("never_sent", "never sent"), ("give_back", "given back")]
            known = "unknown" if how.get("total") is None else "reported"
            one = by_id[id(attempt)]
            one.how, one.end = next((word for name, word in words if how.get(name)), known), time.time()
        return end(attempt, **how)

    agent.reserve, agent.end = reserving, ending


def charged(agent):
    """Every attempt."""
    return [one.row() for one in watched]


def still_open(agent):
    """What has not come to an end, and by how much each ring differs from the charges that are in it."""
    with agent.lock:
        unsent, wrong = {}, {}
        for governor in agent.governors.values():
            for book in governor.books.values():
                charges = [c for one in watched for b, c in one.attempt.charges if b is book]
                inside = sum(c.amount for c in charges if c.slot is not None and not c.slot.gone)
                unsent[f"{book.limit}/{book.unit}"] = book.ring.unsent
                wrong[f"{book.limit}/{book.unit}"] = book.ring.sent - inside
        return {
            "attempts": sum(len(attempts) for attempts in agent.attempts.values()),
            "never ended": sum(not one.attempt.ended for one in watched),
            "waiting": len(agent.waiting.waiters),
            "unsent": unsent,
            "wrong": wrong,
        }


def known(agent):
    """The ids of the deployments that the agent knows."""
    adapter = agent.adapter
    return [list(adapter.seen), list(adapter.matched), list(adapter.identities)]


def upsert(router, deployment):
    """As ProxyConfig._add_deployment does for each model of the database; whether that changed anything."""
    from litellm.types.router import Deployment

    return router.upsert_deployment(Deployment(**deployment)) is not None


def kept(agent):
    """How many tasks and calls the agent still knows."""
    gc.collect()
    module = sys.modules["tokenbudget_agent"]
    return [len(module._request.by_task), len(module._called.by_task), len(agent.calls.by_object)]


ACCOUNTS = {"watch": watch_attempts, "charged": charged, "open": still_open, "known": known, "kept": kept}


def start():
    asyncio.get_running_loop().create_task(watch())
