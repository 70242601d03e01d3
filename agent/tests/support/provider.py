"""A fake provider: OpenAI's chat, completions, embeddings and responses, Anthropic's messages; it writes down
when
each request came and what it counted for it. Runs as its own process: python provider.py PORT

A prompt can ask for what becomes of its own request:
  inject:500, inject:429   fails with that status; inject:500-once only the first time that its tag is seen
  inject:slow              the answer takes 2 s; inject:late 20 s
  inject:drip              a stream of 50 chunks, one each 100 ms; inject:slow-drip begins it after 2 s
  inject:cut               hangs up in the middle of a stream
  tag:NAME                 the name it is written down by

The setting `hold` names a model whose requests are answered only when it is another's, or nobody's.
GET /seen/NAME is answered when a request with that tag has come.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

MARK = re.compile(r"(inject|tag):([\w.-]+)")


class Provider:
    """Counts at arrival: prompt tokens = characters / 4, output = max tokens of the request x n (0 for
    embeddings)."""

    def __init__(self):
        self.arrivals, self.settings = [], {"latency": 0.0, "status": 200, "output": 1.0, "headers": {}}
        self.tags = set()

    def text(self, body):
        return json.dumps(body.get("messages") or body.get("input") or body.get("prompt") or "")

    def usage(self, path, body):
        if "embeddings" in path:
            return max(1, len(json.dumps(body.get("input", ""))) // 4), 0
        text = self.text(body)
        most = (
            body.get("max_tokens")
            or body.get("max_completion_tokens")
            or body.get("max_output_tokens")
            or 100
        )
        return max(1, len(text) // 4), max(1, int(most * self.settings["output"])) * (body.get("n") or 1)

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                at = time.time()
                line, *rest = head.decode().split("\r\n")
                method, path, _ = line.split(" ", 2)
                headers = {k.lower(): v.strip() for k, _, v in (r.partition(":") for r in rest if r)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                body = json.loads(body) if body else {}
                await self.answer(writer, at, method, path, body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def send(self, writer, status, body, kind="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        extra = "".join(f"{k}: {v}\r\n" for k, v in self.settings["headers"].items())
        writer.write(
            (
                f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n{extra}\r\n"
            ).encode()
            + data
        )

    async def answer(self, writer, at, method, path, body):
        if path == "/arrivals":
            return self.send(writer, 200, self.arrivals)
        if path == "/settings":
            self.settings.update(body)
            if body.get("clear"):
                self.arrivals.clear()
                self.tags.clear()
            return self.send(writer, 200, self.settings)
        if path.startswith("/seen/"):
            while path[len("/seen/") :] not in self.tags:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            return self.send(writer, 200, {})
        if "/responses/" in path:  # of an answer that is there: what it once took is told, and not counted
            usage = {"input_tokens": 2000, "output_tokens": 2000, "total_tokens": 4000}
            answer = {"id": "resp_1", "object": "response", "created_at": 0, "model": "gpt", "output": []}
            return self.send(writer, 200, {**answer, "status": "completed", "tools": [], "usage": usage})
        if method != "POST":
            return self.send(writer, 404, {})
        prompt, output = self.usage(path, body)
        marks = dict(MARK.findall(self.text(body)))
        tag, inject = marks.get("tag"), marks.get("inject", "")
        failure, _, once = inject.partition("-")
        fails = failure.isdigit() and not (once and tag in self.tags)
        status = int(failure) if fails else self.settings["status"]
        self.tags.add(tag)
        self.arrivals.append(
            {
                "at": at,
                "tokens": prompt + output,
                "path": path,
                "status": status,
                "model": body.get("model"),
                "stream": bool(body.get("stream")),
                "tag": tag,
            }
        )
        latency = {"slow": 2.0, "late": 20.0}.get(failure, self.settings["latency"])
        await asyncio.sleep(latency)
        model = body.get("model")
        while model and self.settings.get("hold") == model:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        if status != 200:
            return self.send(writer, status, {"error": {"message": "injected", "type": "x", "code": status}})
        now = int(time.time())
        usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        if body.get("stream"):
            await self.stream(writer, self.events(path, body, usage, inject), inject)
        elif "batches" in path:
            asked = {k: body.get(k) for k in ("endpoint", "input_file_id", "completion_window")}
            self.send(
                writer,
                200,
                {"id": "batch", "object": "batch", "status": "validating", "created_at": now, **asked},
            )
        elif "embeddings" in path:
            self.send(
                writer,
                200,
                {
                    "object": "list",
                    "model": model,
                    "usage": usage,
                    "data": [{"object": "embedding", "index": 0, "embedding": [0.0, 1.0]}],
                },
            )
        elif "responses" in path:
            self.send(
                writer,
                200,
                {
                    "id": "resp_1",
                    "object": "response",
                    "created_at": now,
                    "model": model,
                    "status": "completed",
                    "output": [
                        {
                            "type": "message",
                            "id": "m",
                            "role": "assistant",
                            "status": "completed",
                            "content": [{"type": "output_text", "text": "ok", "annotations": []}],
                        }
                    ],
                    "parallel_tool_calls": True,
                    "tool_choice": "auto",
                    "tools": [],
                    "usage": {
                        "input_tokens": prompt,
                        "output_tokens": output,
                        "total_tokens": prompt + output,
                        "input_tokens_details": {"cached_tokens": 0},
                        "output_tokens_details": {"reasoning_tokens": 0},
                    },
                },
            )
        elif "messages" in path:
            self.send(
                writer,
                200,
                {
                    "id": "msg",
                    "type": "message",
                    "role": "assistant",
                    "model": model,
                    "content": [{"type": "text", "text": "ok"}],
                    "stop_reason": "end_turn",
                    "usage": {"input_tokens": prompt, "output_tokens": output},
                },
            )
        elif "chat" in path:
            self.send(
                writer,
                200,
                {
                    "id": "c",
                    "object": "chat.completion",
                    "created": now,
                    "model": model,
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": "stop",
                            "message": {"role": "assistant", "content": "ok"},
                        }
                    ],
                    "usage": usage,
                },
            )
        else:
            self.send(
                writer,
                200,
                {
                    "id": "c",
                    "object": "text_completion",
                    "created": now,
                    "model": model,
                    "choices": [{"index": 0, "finish_reason": "stop", "text": "ok"}],
                    "usage": usage,
                },
            )

    def events(self, path, body, usage, inject):
        """What is streamed, as (event, data). Of a chat's usage OpenAI tells only who asked for it."""
        chunks = 50 if "drip" in inject else self.settings.get("chunks", 1)
        model, texts = body.get("model"), ["o"] + ["k"] * chunks
        prompt, output = usage["prompt_tokens"], usage["completion_tokens"]
        if "responses" in path:
            made = {"id": "resp_1", "object": "response", "created_at": 0, "model": model, "tools": []}
            made.update(parallel_tool_calls=True, tool_choice="auto", output=[])
            yield "response.created", {"response": {**made, "status": "in_progress"}}
            for text in texts:
                yield (
                    "response.output_text.delta",
                    {"item_id": "m", "output_index": 0, "content_index": 0, "delta": text},
                )
            counted = {"input_tokens": prompt, "output_tokens": output, "total_tokens": prompt + output}
            counted.update(
                input_tokens_details={"cached_tokens": 0}, output_tokens_details={"reasoning_tokens": 0}
            )
            yield "response.completed", {"response": {**made, "status": "completed", "usage": counted}}
        elif "messages" in path:
            made = {"id": "msg", "type": "message", "role": "assistant", "model": model, "content": []}
            yield (
                "message_start",
                {"message": {**made, "usage": {"input_tokens": prompt, "output_tokens": 1}}},
            )
            yield "content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}
            for text in texts:
                yield "content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": text}}
            yield "content_block_stop", {"index": 0}
            yield (
                "message_delta",
                {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": output}},
            )
            yield "message_stop", {}
        else:
            base = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": model}
            for text in texts:
                yield (
                    None,
                    {**base, "choices": [{"index": 0, "delta": {"role": "assistant", "content": text}}]},
                )
            yield None, {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            if (body.get("stream_options") or {}).get("include_usage"):
                yield None, {**base, "choices": [], "usage": usage}
            yield None, None

    async def stream(self, writer, events, inject):
        writer.write(
            b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for number, (event, data) in enumerate(events):
            head, shown = "", "[DONE]"
            if event:
                head, shown = (
                    f"event: {event}\n",
                    json.dumps({"type": event, "sequence_number": number, **data}),
                )
            elif data is not None:
                shown = json.dumps(data)
            text = f"{head}data: {shown}\n\n"
            writer.write(f"{len(text):x}\r\n{text}\r\n".encode())
            await writer.drain()
            if inject == "cut" and number == 1:
                await asyncio.sleep(0.2)  # what was written has been read
                raise ConnectionAbortedError
            await asyncio.sleep(0.1 if "drip" in inject else self.settings.get("chunk_delay", 0))
        writer.write(b"0\r\n\r\n")


class ProviderProcess:
    """The provider in a process of its own."""

    def __init__(self, port):
        self.port = port
        self.process = subprocess.Popen([sys.executable, str(Path(__file__)), str(port)])
        deadline = time.time() + 10
        while True:
            try:
                self.call("/arrivals")
                break
            except OSError:
                assert time.time() < deadline, "the fake provider did not start"
                time.sleep(0.02)

    @property
    def base(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def call(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)) as r:
            return json.loads(r.read())

    def set(self, **settings):
        return self.call("/settings", settings)

    def arrivals(self):
        return self.call("/arrivals")

    def stop(self):
        self.process.kill()
        self.process.wait()


def worst_minute(arrivals, slots=600, width=0.1):
    """The most tokens in any 600 consecutive slots of 100 ms."""
    if not arrivals:
        return 0
    start = min(a["at"] for a in arrivals)
    sums = {}
    for a in arrivals:
        if a["status"] == 200:
            slot = int((a["at"] - start) / width)
            sums[slot] = sums.get(slot, 0) + a["tokens"]
    worst = running = 0
    for slot in range(max(sums, default=0) + 1):
        running += sums.get(slot, 0) - sums.get(slot - slots, 0)
        worst = max(worst, running)
    return worst


if __name__ == "__main__":

    async def main():
        server = await asyncio.start_server(Provider().serve, "127.0.0.1", int(sys.argv[1]))
        await server.serve_forever()

    asyncio.run(main())
