"""What the agent costs: LiteLLM with it beside the same LiteLLM without it, in turns. Prints a table.

usage: python costs.py [FILE]   (puts it between the marks of that file, else prints it)
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from support import load, rendering
from support.fake_operator import Operator, limit, policy
from support.ports import free_port
from support.provider import ProviderProcess
from support.proxy import VENV, Proxy, config, deployment
from support.redis_server import RedisServer

TICKS = os.sysconf("SC_CLK_TCK")
SECONDS = 15.0  # of each measurement
ROUNDS = 4
BEGIN, END = "<!-- costs -->", "<!-- /costs -->"


def say(text):
    print(f"costs: {text}", file=sys.stderr, flush=True)


def cpu(proxy):
    """Seconds of CPU that the process has used."""
    fields = Path(f"/proc/{proxy.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss(proxy):
    """MB."""
    text = Path(f"/proc/{proxy.process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def body():
    return {"model": "gpt", "max_tokens": 10, "messages": [{"role": "user", "content": "hello there"}]}


async def closed(proxy, seconds, callers=8):
    """As many requests as it serves: a second."""
    end, done = time.time() + seconds, 0

    async def caller():
        nonlocal done
        while time.time() < end:
            status, *_ = await load.post(proxy.port, "/v1/chat/completions", body())
            assert status == 200, status
            done += 1

    start = time.time()
    await asyncio.gather(*[caller() for _ in range(callers)])
    return done / (time.time() - start)


async def steady(proxy, rate, seconds):
    """So many requests a second."""
    tasks = []
    for _ in range(int(rate * seconds)):
        tasks.append(asyncio.ensure_future(load.post(proxy.port, "/v1/chat/completions", body())))
        await asyncio.sleep(1 / rate)
    await asyncio.gather(*tasks)


def commands(redis):
    stats = redis.client().info("commandstats")
    return sum(v["calls"] for k, v in stats.items() if k in ("cmdstat_evalsha", "cmdstat_eval"))


def measure(directory):
    """Everything, as rows of the table."""
    redis = RedisServer(directory).start()
    provider = ProviderProcess(free_port())
    operator, pol = Operator(redis.client()), policy([limit(budget=10**9, safe=10**9)])
    operator.publish(pol)
    conf = config([deployment(provider.base, tpm=10**9)], routing_strategy="simple-shuffle")
    proxies = [
        Proxy(directory, conf, [pol], redis.url, name="with", agent=True),
        Proxy(directory, conf, [pol], redis.url, name="without", agent=False),
    ]
    try:
        for proxy in proxies:
            proxy.wait()
        say("both are ready")
        for proxy in proxies:
            asyncio.run(closed(proxy, 5))
        operator.keep_time()
        served = [[], []]
        for turn in range(ROUNDS):
            for at in (0, 1) if turn % 2 else (1, 0):
                served[at].append(asyncio.run(closed(proxies[at], SECONDS)))
                operator.keep_time()
                say(f"{proxies[at].name} the agent: {served[at][-1]:.1f} requests a second")
        memory = [rss(proxy) for proxy in proxies]
        idle = [[], []]
        for _ in range(2):
            before = [cpu(proxy) for proxy in proxies]
            time.sleep(SECONDS)
            operator.keep_time()
            for at, proxy in enumerate(proxies):
                idle[at].append((cpu(proxy) - before[at]) / SECONDS)
        beats = {}
        for rate in (1, 60):
            before = commands(redis)
            asyncio.run(steady(proxies[0], rate, SECONDS))
            beats[rate] = (commands(redis) - before) / SECONDS
            operator.keep_time()
        rates = [statistics.mean(one) for one in served]
        spread = max(max(one) - min(one) for one in served) / statistics.mean(rates)
        return [
            (
                "requests a second, as many as it serves",
                f"{rates[1]:.1f}",
                f"{rates[0]:.1f}",
                f"{100 * (rates[0] / rates[1] - 1):+.1f} % (runs alike differ by {100 * spread:.1f} %)",
            ),
            (
                "memory (RSS) after that",
                f"{memory[1]:.0f} MB",
                f"{memory[0]:.0f} MB",
                f"{memory[0] - memory[1]:+.1f} MB",
            ),
            (
                "CPU when idle",
                *[f"{100 * statistics.mean(idle[at]):.2f} % of a core" for at in (1, 0)],
                f"{100 * (statistics.mean(idle[0]) - statistics.mean(idle[1])):+.2f} %",
            ),
            ("ledger calls a second at 1 request/s", "0", f"{beats[1]:.1f}", ""),
            ("ledger calls a second at 60 requests/s", "0", f"{beats[60]:.1f}", ""),
        ]
    finally:
        for proxy in proxies:
            proxy.stop()
        provider.stop()
        redis.stop()


def main():
    venv = Path(os.environ.get("TOKENBUDGET_LITELLM_VENV", VENV))
    with tempfile.TemporaryDirectory() as directory:
        agent = Path(directory) / "agent"
        agent.mkdir()
        rendering.write(agent)
        env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
        command = [str(venv / "bin" / "python"), str(HERE / "hooks.py"), str(agent), "20000"]
        hooks = json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout)
        say(f"hooks: {hooks}")
        rows = measure(Path(directory))
    lines = [
        f"LiteLLM {venv.name}, one process, {os.cpu_count()} cores, a provider that answers at once.\n",
        "| | without | with the agent | difference |",
        "|---|---|---|---|",
    ]
    for size, (middle, high) in hooks.items():
        lines.append(f"| hooks of one request, prompt of {size}: p50 / p99 | - | {middle} / {high} µs | |")
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    table = "\n".join(lines) + "\n"
    if len(sys.argv) == 1:
        print(table, end="")
        return
    file = Path(sys.argv[1])
    head, rest = file.read_text().split(BEGIN)
    file.write_text(head + BEGIN + "\n" + table + END + rest.split(END)[1])


main()
