"""Real LiteLLM processes; one Redis, one provider and one proxy for a whole module where a test allows it."""

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from support.fake_operator import Operator
from support.ports import free_port
from support.provider import ProviderProcess
from support.proxy import Proxy
from support.redis_server import RedisServer

CONTROL = Path(__file__).with_name("control.py")


class Rig:
    """Redis, provider, and the proxies a test starts."""

    def __init__(self, directory):
        self.directory, self.proxies = directory, []
        self.redis = RedisServer(directory).start()
        self.operator = Operator(self.redis.client())
        self.provider = ProviderProcess(free_port())
        self.stopped = threading.Event()
        self.ticker = threading.Thread(target=self.tick)
        self.ticker.start()

    def tick(self):
        while not self.stopped.wait(0.5):
            self.operator.keep_time()

    @property
    def litellm_redis(self):
        """LiteLLM's own use of the same Redis: router settings."""
        return {"redis_host": "127.0.0.1", "redis_port": self.redis.port}

    def start(self, conf, policies, **more):
        name = f"p{len(self.proxies)}"
        env = {"LITELLM_WORKER_STARTUP_HOOKS": "tokenbudget_agent:start,control:start", **more.pop("env", {})}
        proxy = Proxy(self.directory, conf, policies, self.redis.url, name=name, env=env, **more)
        shutil.copy(CONTROL, proxy.directory / "control.py")
        self.proxies.append(proxy)
        return proxy

    def stop(self):
        self.stopped.set()
        self.ticker.join()
        for proxy in self.proxies:
            proxy.stop()
        self.provider.stop()
        self.redis.stop()


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    made = Rig(tmp_path_factory.mktemp("rig"))
    yield made
    made.stop()


def control(proxy, do, **more):
    """Has control.py do something inside the process."""
    result = proxy.directory / "result.json"
    result.unlink(missing_ok=True)
    (proxy.directory / "command.tmp").write_text(json.dumps({"do": do, **more}))
    (proxy.directory / "command.tmp").rename(proxy.directory / "command.json")
    deadline = time.time() + 10
    while not result.exists():
        assert time.time() < deadline, "control.py did not answer"
        time.sleep(0.02)
    return json.loads(result.read_text())


def until(condition, seconds=10.0):
    deadline = time.time() + seconds
    while time.time() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")
