"""What the agent costs: one LiteLLM with it and one without it, both up all the time, in short turns that
alternate (with, without, without, with). Prints a table.

usage: python costs.py [FILE]   (puts it between the marks of that file, else prints it)

The machine should do nothing else. Each turn is the same number of requests, so both have served as many.
LiteLLM is on a core of its own, everything else on the others. Under 6 minutes.
"""

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
SUPPORT = HERE.parent / "tests" / "support"
sys.path.insert(0, str(SUPPORT.parent))

from support import load, rendering
from support.fake_operator import Operator, limit, policy
from support.ports import free_port
from support.provider import ProviderProcess
from support.proxy import VENV, Proxy, config, deployment
from support.redis_server import RedisServer

TICKS = os.sysconf("SC_CLK_TCK")
WARM = 300  # requests before anything is measured
TURN = 120  # requests
CALLERS = 8  # at a time: more than one core serves
TURNS = 140.0  # seconds of turns, and what remains of the last four
LEAST = 3  # fours, however slow the machine is
IDLE = 60.0  # seconds
STEADY = 12.0  # seconds at each rate
RATE = 30  # requests a second, where hooks are timed
FULL = 2000  # requests as fast as it serves them, where hooks are timed
BEGIN, END = "<!-- costs -->", "<!-- /costs -->"
TARGETS = {
    "hooks": "p99 at most 50 µs",
    "loss": "at most 1 %",
    "memory": "at most 5 MB",
    "idle": "at most 0.5 %",
}


def wait(condition, what):
    end = time.time() + 30
    while not condition():
        assert time.time() < end, f"{what} did not come within 30 s"
        time.sleep(0.05)


def say(text):
    print(f"costs: {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- one process


def cpu(proxy):
    """Seconds of CPU that the process has used: user and system, all threads."""
    fields = Path(f"/proc/{proxy.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss(proxy):
    """MB."""
    text = Path(f"/proc/{proxy.process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def to_cores(pid, cores):
    """All threads of a process; those that it starts later follow."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


# ---------------------------------------------------------------- load


def request(proxy):
    body = {"model": "gpt", "max_tokens": 10, "messages": [{"role": "user", "content": "hello there"}]}
    return load.post(proxy.port, "/v1/chat/completions", body)


async def closed(proxy, requests):
    """So many requests, as fast as it serves them; seconds."""
    left = requests

    async def caller():
        nonlocal left
        while left > 0:
            left -= 1
            status, *_ = await request(proxy)
            assert status == 200, status

    start = time.perf_counter()
    await asyncio.gather(*[caller() for _ in range(CALLERS)])
    return time.perf_counter() - start


async def steady(proxy, rate, seconds):
    """So many requests a second; how many."""
    start, tasks = time.perf_counter(), []
    while len(tasks) < rate * seconds:
        tasks.append(asyncio.ensure_future(request(proxy)))
        await asyncio.sleep(max(0.0, start + len(tasks) / rate - time.perf_counter()))
    for status, *_ in await asyncio.gather(*tasks):
        assert status == 200, status
    return len(tasks)


# ---------------------------------------------------------------- what is measured


def percentiles(times):
    """p50 and p99 of µs."""
    ordered = sorted(times)
    return f"{ordered[len(ordered) // 2]:.0f} / {ordered[int(len(ordered) * 0.99)]:.0f} µs"


def difference(pairs):
    """(with, without) of each four: the median of the differences in %, and half of what their middle half
    spans."""
    parts = [100 * (with_ / without - 1) for with_, without in pairs]
    low, middle, high = statistics.quantiles(parts, n=4)
    return f"{middle:+.1f} % (± {(high - low) / 2:.1f} over {len(parts)} fours)"


def turns(proxies):
    """Rows: CPU of a request, requests a second, memory."""
    took, rates, memory = [], [], []
    end = time.time() + TURNS
    while time.time() < end or len(took) < LEAST:
        used, passed = [0.0, 0.0], [0.0, 0.0]
        for at in (0, 1, 1, 0):
            before = cpu(proxies[at])
            passed[at] += asyncio.run(closed(proxies[at], TURN))
            used[at] += cpu(proxies[at]) - before
        took.append([1000 * seconds / (2 * TURN) for seconds in used])
        rates.append([2 * TURN / seconds for seconds in passed])
        memory.append([rss(proxy) for proxy in proxies])
        with_, without = took[-1]
        say(f"CPU of a request: {with_:.2f} ms with, {without:.2f} without; {end - time.time():.0f} s to go")
    milliseconds = [statistics.median(four[at] for four in took) for at in (1, 0)]
    seconds = [statistics.median(four[at] for four in rates) for at in (1, 0)]
    last = memory[-1]
    served = WARM + 2 * TURN * len(took)
    more = statistics.median(with_ - without for with_, without in memory)
    return [
        ["CPU of a request", *[f"{one:.2f} ms" for one in milliseconds], difference(took), TARGETS["loss"]],
        [
            "requests a second of one core",
            *[f"{one:.1f}" for one in seconds],
            difference(rates),
            TARGETS["loss"],
        ],
        [
            f"memory (RSS) after {served} requests each",
            f"{last[1]:.0f} MB",
            f"{last[0]:.0f} MB",
            f"{more:+.1f} MB (the median of {len(memory)} looks)",
            TARGETS["memory"],
        ],
    ]


def idle(proxies):
    """A row: CPU while nothing is asked."""
    say(f"idle for {IDLE:.0f} s")
    time.sleep(2)  # what is logged after a request
    before = [cpu(proxy) for proxy in proxies]
    time.sleep(IDLE)
    with_, without = (100 * (cpu(proxy) - was) / IDLE for proxy, was in zip(proxies, before))
    shown = [f"{one:.2f} % of a core" for one in (without, with_)]
    return [f"CPU when idle, over {IDLE:.0f} s", *shown, f"{with_ - without:+.2f} %", TARGETS["idle"]]


def ledger_calls(redis):
    stats = redis.client().info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))


def calls(proxy, redis, rate):
    """A row: what the agent asks of Redis at this rate."""
    say(f"{rate} requests a second for {STEADY:.0f} s")
    before, start = ledger_calls(redis), time.perf_counter()
    served = asyncio.run(steady(proxy, rate, STEADY))
    passed = time.perf_counter() - start
    made = (ledger_calls(redis) - before) / passed
    return [f"Redis calls a second at {served / passed:.0f} requests/s", "0", f"{made:.1f}", "", ""]


def timed(proxy, load_):
    """The µs in each hook of each request while this load runs, measured in LiteLLM."""
    times = proxy.directory / "times.json"
    times.unlink(missing_ok=True)
    (proxy.directory / "measuring").unlink(missing_ok=True)
    (proxy.directory / "measure").touch()
    wait((proxy.directory / "measuring").exists, "the file measuring")
    asyncio.run(load_)
    time.sleep(1)  # what is logged after a request
    (proxy.directory / "measure").unlink()
    wait(times.exists, times)
    found = json.loads(times.read_text())
    for name, one in sorted(found.items(), key=lambda item: -sum(item[1])):
        if one:
            say(f"  {name}: {percentiles(one)}, {len(one)} requests")
    return found["all"]


def inside(proxy):
    """Rows: the time in all hooks of a request, seldom and at full load, where it is CPU that requests
    lose."""
    say(f"hooks, in LiteLLM, at {RATE} requests a second for {STEADY:.0f} s")
    seldom = timed(proxy, steady(proxy, RATE, STEADY))
    say(f"hooks, in LiteLLM, at full load, {FULL} requests")
    before = cpu(proxy)
    full = timed(proxy, closed(proxy, FULL))
    part = sum(full) / 1e6 / (cpu(proxy) - before)
    at = "hooks of one request in LiteLLM at"
    return [
        [
            f"{at} {RATE} requests/s ({len(seldom)}): p50 / p99",
            "-",
            percentiles(seldom),
            "",
            TARGETS["hooks"],
        ],
        [f"{at} full load ({len(full)}): p50 / p99", "-", percentiles(full), "", TARGETS["hooks"]],
        ["the same, of all CPU that a request takes", "-", f"{100 * part:.1f} %", "", TARGETS["loss"]],
    ]


def alone(directory, venv):
    """Rows: the hooks against LiteLLM's Router, without the proxy around them (hooks.py)."""
    say("hooks, with LiteLLM's router alone")
    agent = Path(directory) / "agent"
    agent.mkdir()
    rendering.write(agent)
    env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    command = [str(venv / "bin" / "python"), str(HERE / "hooks.py"), str(agent), "10000"]
    out = json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout)
    return [
        [f"{what}: p50 / p99", "-", f"{middle} / {high} µs", "", TARGETS["hooks"] if "hooks" in what else ""]
        for what, (middle, high) in out.items()
    ]


# ---------------------------------------------------------------- all of it


def measure(directory):
    """Starts what is needed; the table's rows; ends it."""
    redis = RedisServer(directory).start()
    provider = ProviderProcess(free_port())
    pol = policy([limit(budget=10**9, safe=10**9)])
    conf = config([deployment(provider.base, tpm=10**9)], routing_strategy="simple-shuffle")
    hooks = {"LITELLM_WORKER_STARTUP_HOOKS": "tokenbudget_agent:start,hooktimes:start"}
    proxies = [
        Proxy(directory, conf, [pol], redis.url, name="with", env=hooks),
        Proxy(directory, conf, [pol], redis.url, name="without", agent=False),
    ]
    shutil.copy(SUPPORT / "hooktimes.py", proxies[0].directory)
    try:
        for proxy in proxies:
            proxy.wait()
        operator = Operator(redis.client())
        operator.publish(pol)  # a book that nobody calls for a lease would have to learn
        wait(lambda: any(row["record"] for row in operator.members().values()), "a grant")
        say("both are ready")
        first, *others = sorted(os.sched_getaffinity(0))
        if others:
            for proxy in proxies:
                to_cores(proxy.process.pid, {first})
            for pid in (os.getpid(), provider.process.pid, redis.process.pid):
                to_cores(pid, set(others))
        for proxy in proxies:
            asyncio.run(closed(proxy, WARM))
        rows = turns(proxies)
        rows.append(idle(proxies))
        rows += [calls(proxies[0], redis, rate) for rate in (1, 60)]
        return [*inside(proxies[0]), *rows]
    finally:
        for proxy in proxies:
            proxy.stop()
        provider.stop()
        redis.stop()


def main():
    venv = Path(os.environ.get("TOKENBUDGET_LITELLM_VENV", VENV))
    start = time.time()
    with tempfile.TemporaryDirectory() as directory:
        rows = [*alone(directory, venv), *measure(Path(directory))]
    say(f"done after {time.time() - start:.0f} s")
    lines = [
        f"LiteLLM {venv.name}, on one of {os.cpu_count()} cores, with a provider that answers at once.\n",
        "| | without | with the agent | difference | target |",
        "|---|---|---|---|---|",
    ]
    table = "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"
    if len(sys.argv) == 1:
        print(table, end="")
        return
    file = Path(sys.argv[1])
    head, rest = file.read_text().split(BEGIN)
    file.write_text(head + BEGIN + "\n" + table + END + rest.split(END)[1])


main()
