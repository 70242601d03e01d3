"""Loaded into LiteLLM beside the agent: times the agent's hooks by request, for as long as there is a file
`measure`. It says that it does by a file `measuring`, and then writes times.json: {hook: [µs of each
request]}, `all` of them together. It looks once a second: it must cost nothing while it is not wanted."""

import asyncio
import collections
import json
import os
import time


class Times:
    """Stands before each hook of the handler."""

    def __init__(self, module):
        self.module, self.hooks = module, module._agent.adapter.handler
        self.by_call = collections.defaultdict(dict)
        self.names = [name for name in vars(type(self.hooks)) if name.startswith(("async_", "log_"))]
        for name in self.names:
            wrapped = self.sync if name.startswith("log_") else self.awaited
            setattr(self.hooks, name, wrapped(name, getattr(self.hooks, name)))

    def note(self, name, took, args, more):
        """A hook's request is named in one of its arguments; the check's only by its task."""
        for value in (*args, *more.values()):
            if isinstance(value, dict) and "litellm_call_id" in value:
                call_id = value["litellm_call_id"]
                break
        else:
            request = self.module._request.request()
            call_id = request and request.call_id
        parts = self.by_call[call_id]
        parts[name] = parts.get(name, 0.0) + took

    def awaited(self, name, hook):
        async def timed(*args, **more):
            start = time.perf_counter()
            try:
                return await hook(*args, **more)
            finally:
                self.note(name, time.perf_counter() - start, args, more)

        return timed

    def sync(self, name, hook):
        def timed(*args, **more):
            start = time.perf_counter()
            try:
                return hook(*args, **more)
            finally:
                self.note(name, time.perf_counter() - start, args, more)

        return timed

    def end(self):
        """The hooks as they were; the times of the requests that were seen from the first to the last."""
        for name in self.names:
            delattr(self.hooks, name)
        whole = [
            parts
            for parts in self.by_call.values()
            if "async_pre_call_hook" in parts and "async_log_success_event" in parts
        ]
        out = {name: [1e6 * parts[name] for parts in whole if name in parts] for name in self.names}
        return {**out, "all": [1e6 * sum(parts.values()) for parts in whole]}


def look(times):
    """One look at the file: begins, goes on or ends."""
    wanted = os.path.exists("measure")
    if wanted and times is None:
        import tokenbudget_agent

        times = Times(tokenbudget_agent)
        open("measuring", "w").close()
        return times
    if times is None or wanted:
        return times
    with open("times.tmp", "w") as file:
        json.dump(times.end(), file)
    os.rename("times.tmp", "times.json")
    return None


async def watch():
    times = None
    while True:
        await asyncio.sleep(1)
        times = look(times)


def start():
    asyncio.get_running_loop().create_task(watch())
