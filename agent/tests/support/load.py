"""Closed and open load against proxies, with asyncio and bare sockets (LiteLLM's venv is not needed)."""

import asyncio
import json
import random
import threading
import time

from .proxy import KEY


async def send(port, path, body, headers=""):
    """The connection, when the request has been written; `headers` are whole lines."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    writer.write(
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n{headers}"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\nconnection: close\r\n\r\n".encode()
        + data
    )
    return reader, writer


async def post(port, path, body, headers=""):
    """(status, headers, text, seconds)"""
    start = time.time()
    reader, writer = await send(port, path, body, headers)
    raw = await reader.read()
    writer.close()
    head, _, text = raw.partition(b"\r\n\r\n")
    line, *rest = head.decode().split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (r.partition(":") for r in rest)}
    return int(line.split()[1]), headers, text.decode(), time.time() - start


async def get(port, path):
    """Asks for something that is no proxy's; waits as long as that takes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def run(
    ports, seconds, rate, tokens=(200, 2000), weights=None, seed=1, model="gpt", path="/v1/chat/completions"
):
    """Open load: `rate` requests a second over the ports for so long; (status, Retry-After, seconds) of
    each."""
    rng, tasks, out = random.Random(seed), [], []

    async def one(port, most):
        try:
            status, headers, _, took = await post(
                port,
                path,
                {
                    "model": model,
                    "max_tokens": most,
                    "messages": [{"role": "user", "content": "hello there " * 5}],
                },
            )
            out.append((time.time(), status, headers.get("retry-after"), took))
        except (OSError, IndexError):
            out.append((time.time(), 0, None, 0.0))

    end = time.time() + seconds
    while time.time() < end:
        tasks.append(asyncio.ensure_future(one(rng.choices(ports, weights)[0], rng.randint(*tokens))))
        await asyncio.sleep(rng.expovariate(rate))
    await asyncio.gather(*tasks)
    return out


class Traffic:
    """Open load in a thread of its own until it is stopped; processes join it one by one. A request's tag
    says which process it went to."""

    def __init__(self):
        self.answers = []  # of each request: when it came, process, model, status, headers
        self.loop, self.stopping = asyncio.new_event_loop(), False
        self.thread, self.sources = threading.Thread(target=self.loop.run_forever), []
        self.thread.start()

    def join(self, proxy, model, rate, tokens=(200, 1000)):
        """From now on this process gets `rate` requests a second for this model."""
        source = self.source(proxy, model, rate, tokens)
        self.sources.append(asyncio.run_coroutine_threadsafe(source, self.loop))

    async def source(self, proxy, model, rate, tokens):
        rng, tasks = random.Random(f"{proxy.name} {model}"), []
        while not self.stopping:
            tasks.append(asyncio.ensure_future(self.one(proxy, model, rng.randint(*tokens))))
            await asyncio.sleep(rng.expovariate(rate))
        await asyncio.gather(*tasks)

    async def one(self, proxy, model, most):
        words = [{"role": "user", "content": f"tag:{proxy.name} hello there"}]
        body = {"model": model, "max_tokens": most, "messages": words}
        try:
            status, headers, *_ = await post(proxy.port, "/v1/chat/completions", body)
        except (OSError, IndexError):
            status, headers = 0, {}
        self.answers.append((time.time(), proxy.name, model, status, headers))

    def stop(self):
        """Waits for the answers that are still to come; raises what went wrong."""
        self.stopping = True
        try:
            for source in self.sources:
                source.result(60)
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
