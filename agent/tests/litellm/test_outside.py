"""What goes to the provider past the router: it is not governed, it disturbs nothing, and it is reported.
Realtime does ask the router."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import until
from support.fake_operator import limit, policy
from support.ports import free_port
from support.proxy import KEY, config, deployment

REALTIME = Path(__file__).parents[1] / "support" / "realtime.py"
BODY = {"model": "gpt", "max_tokens": 600, "messages": [{"role": "user", "content": "hello"}]}
BATCH = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
POLICY = policy(
    [
        limit(budget=1000, safe=1000),
        limit(name="rt", budget=5000, safe=5000),
        limit(name="mute", budget=100, safe=100),
    ],
    uid="uid-outside",
    beatMs=300,
)
PAST = {
    "a pass-through route": ("/through", BODY, "passthrough"),
    "its stream": ("/through", {**BODY, "stream": True}, "passthrough"),
    "LiteLLM's own": ("/openai/v1/chat/completions", BODY, "passthrough"),
    "a batch": ("/v1/batches", {**BATCH, "model": "gpt"}, "batch"),
}


@pytest.fixture(scope="module")
def sockets(rig, proxy):
    """A realtime provider, run by LiteLLM's Python."""
    with open(rig.directory / "realtime", "w") as log:
        process = subprocess.Popen([*python(proxy), "serve", str(rig.realtime)], stdout=log)
    yield lambda: (rig.directory / "realtime").read_text().count("connected")
    process.kill()
    process.wait()


def python(proxy):
    return [str(Path(proxy.process.args[0]).with_name("python")), str(REALTIME)]


@pytest.fixture(scope="module")
def proxy(rig):
    """One whose small limit is full."""
    rig.operator.publish(POLICY)
    rig.realtime = free_port()
    base, sound = rig.provider.base, f"http://127.0.0.1:{rig.realtime}/v1"
    conf = config(
        [
            deployment(base, tpm=None),
            deployment(sound, "rt", tpm=None),
            deployment(sound, "mute", tpm=None),
        ],
        num_retries=0,
    )
    headers = {"Authorization": "bearer x", "content-type": "application/json"}
    conf["general_settings"]["pass_through_endpoints"] = [
        {"path": "/through", "target": base + "/chat/completions", "headers": headers}
    ]
    env = {"OPENAI_API_BASE": base.removesuffix("v1"), "OPENAI_API_KEY": "x"}
    made = rig.start(conf, [POLICY], env=env).wait()
    until(lambda: spent(rig) > 0 or made.chat(600)[0] == 200)
    until(lambda: spent(rig) > 600)
    assert made.chat(600)[0] == 429
    return made


def report(rig):
    return next(r for r in rig.operator.reports("uid-outside").values() if r["state"] != "Starting")


def spent(rig, name="gpt"):
    return sum(r["spent"] for r in rig.operator.members("uid-outside", name).values())


@pytest.mark.parametrize("way", PAST)
def test_what_does_not_ask_the_router_passes_a_full_limit_and_disturbs_nothing(rig, proxy, way):
    path, body, _ = PAST[way]
    until(lambda: spent(rig) > 600)
    charged, start = spent(rig), len(rig.provider.arrivals())
    assert proxy.post(path, body)[0] == 200
    assert len(rig.provider.arrivals()) == start + 1
    assert proxy.chat(600)[0] == 429
    assert spent(rig) <= charged
    assert (report(rig)["state"], report(rig)["problems"]) == ("Enforcing", [])
    assert "tokenbudget: fault" not in proxy.text()


@pytest.mark.parametrize("way", PAST)
def test_what_does_not_ask_the_router_is_reported(rig, proxy, way):
    def outside():
        rows = {row["kind"]: row for row in report(rig).get("outside", [])}
        return rows.get(kind, {"requests": 0, "tokens": 0})

    path, body, kind = PAST[way]
    before = outside()
    assert proxy.post(path, body)[0] == 200
    used = 0 if body.get("stream") or kind == "batch" else rig.provider.arrivals()[-1]["tokens"]
    after = until(lambda: found if (found := outside())["requests"] > before["requests"] else None, 15)
    assert after["tokens"] >= before["tokens"] + used


def test_a_health_check_passes_a_full_limit_and_is_reported(rig, proxy):
    until(lambda: spent(rig) > 600)
    charged, start = spent(rig), len(rig.provider.arrivals())
    answer = proxy.get("/health?model=gpt")
    assert answer["healthy_count"] == 1
    (asked,) = rig.provider.arrivals()[start:]

    def outside():
        return next((row for row in report(rig).get("outside", []) if row["kind"] == "other"), None)

    found = until(lambda: row if (row := outside()) and row["tokens"] else None, 15)
    assert found == {"kind": "other", "requests": 1, "tokens": asked["tokens"]}
    assert spent(rig) <= charged
    assert "tokenbudget: fault" not in proxy.text()


def talk(proxy, model):
    """What a realtime client gets, line by line."""
    url = f"ws://127.0.0.1:{proxy.port}/v1/realtime?model={model}"
    command = [*python(proxy), "talk", url, KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return [json.loads(line).get("type") for line in done.stdout.splitlines()]


def test_a_realtime_session_is_held_to_the_limit_when_it_opens_and_counted_when_it_ends(rig, proxy, sockets):
    assert "response.done" not in talk(proxy, "mute")
    assert sockets() == 0, "refused: nothing reached the provider"
    if proxy.version < (1, 92):
        pytest.skip("LiteLLM 1.82.6 cannot talk to a realtime provider with the websockets that it installs")
    assert talk(proxy, "rt") == ["session.created", "response.done"]
    assert sockets() == 1
    until(lambda: spent(rig, "rt") == 77, 5)
