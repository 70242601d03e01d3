"""A realtime provider and a client of it, run by LiteLLM's own Python, which has websockets.

python realtime.py serve PORT    counts 77 tokens for each response; prints each connection
python realtime.py talk URL KEY  asks for one response; prints what it gets
"""

import asyncio
import json
import sys

import websockets

USAGE = {
    "total_tokens": 77,
    "input_tokens": 40,
    "output_tokens": 37,
    "input_token_details": {"cached_tokens": 0, "text_tokens": 40, "audio_tokens": 0},
    "output_token_details": {"text_tokens": 37, "audio_tokens": 0},
}


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def answer(socket):
    say("connected")
    session = {"id": "s", "model": "rt"}
    await socket.send(json.dumps({"type": "session.created", "event_id": "e", "session": session}))
    async for message in socket:
        if json.loads(message).get("type") == "response.create":
            response = {"id": "r", "object": "realtime.response", "status": "completed", "output": []}
            done = {"type": "response.done", "event_id": "f", "response": {**response, "usage": USAGE}}
            await socket.send(json.dumps(done))


async def serve(port):
    async with websockets.serve(answer, "127.0.0.1", int(port)):
        await asyncio.Future()


async def talk(url, key):
    headers = {"authorization": "Bearer " + key, "OpenAI-Beta": "realtime=v1"}
    async with websockets.connect(url, additional_headers=headers) as socket:
        say(await asyncio.wait_for(socket.recv(), 10))
        await socket.send(json.dumps({"type": "response.create"}))
        say(await asyncio.wait_for(socket.recv(), 10))


if __name__ == "__main__":
    asyncio.run({"serve": serve, "talk": talk}[sys.argv[1]](*sys.argv[2:]))
