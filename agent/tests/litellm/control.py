"""Loaded into LiteLLM beside the agent: does to the live router what a database poll would do, on request by
a file.

Also a custom callback, named as ONE string in `litellm_settings.callbacks`: the form that drops other
callbacks.
"""

import asyncio
import json
import os

from litellm.integrations.custom_logger import CustomLogger

handler = CustomLogger()


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


def run(command):
    import litellm
    from litellm.proxy import proxy_server

    router = proxy_server.llm_router
    what = command["do"]
    if what == "add":
        from litellm.types.router import Deployment

        router.add_deployment(Deployment(**command["deployment"]))
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
    return "done"


def start():
    asyncio.get_running_loop().create_task(watch())
