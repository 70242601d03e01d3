"""Loaded into LiteLLM beside the agent: has Python collect what nobody holds any more, on request by a file.

A call whose client left goes with the reference cycles that it is in. Python looks for those when enough new
objects were made, which a process that has nothing to do makes none of.
"""

import asyncio
import gc
import os


async def watch():
    while True:
        await asyncio.sleep(0.1)
        try:
            os.remove("collect")
        except OSError:
            continue
        gc.collect()


def start():
    asyncio.get_running_loop().create_task(watch())
