"""Real LiteLLM proxy processes with the agent in them."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from . import rendering
from .ports import free_port

VENV = "/root/.cache/tokenbudget/litellm/1.106.2"
KEY = "sk-test"


def config(models, **router):
    """A LiteLLM config (JSON is YAML)."""
    return {
        "model_list": models,
        "general_settings": {"master_key": KEY},
        "router_settings": {"routing_strategy": "usage-based-routing-v2", **router},
    }


def deployment(base, name="gpt", tpm=60000, rpm=None, model=None, **info):
    """One entry of model_list."""
    params = {"model": model or "openai/" + name, "api_base": base, "api_key": "x"}
    if tpm is not None:
        params["tpm"] = tpm
    if rpm is not None:
        params["rpm"] = rpm
    return {"model_name": name, "litellm_params": params, **({"model_info": info} if info else {})}


class Proxy:
    """One LiteLLM process: its own directory with the agent, the policy file, the config, the log."""

    def __init__(
        self,
        directory: Path,
        conf,
        policies,
        redis_url,
        name="p0",
        workers=1,
        agent=True,
        env=None,
        arguments=(),
        healthcheck=60,  # uvicorn's 5 s kill slow starters
    ):
        self.directory, self.name, self.port = Path(directory) / name, name, free_port()
        self.directory.mkdir(parents=True)
        rendering.write(self.directory)
        (self.directory / "config.yaml").write_text(json.dumps(conf))
        (self.directory / "policy").mkdir()
        (self.directory / "policy" / "policy.json").write_text(json.dumps({"tokenBudgets": policies}))
        venv = Path(os.environ.get("TOKENBUDGET_LITELLM_VENV", VENV))
        assert (venv / "bin" / "litellm").exists(), f"{venv} has no LiteLLM: set TOKENBUDGET_LITELLM_VENV"
        self.version = tuple(int(part) for part in venv.name.split("."))
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("REDIS_", "TOKENBUDGET_"))}
        environ.update(
            {
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "LITELLM_TELEMETRY": "False",
                "PYTHONUNBUFFERED": "1",
                "PYTHONFAULTHANDLER": "1",  # where the interpreter crashed, in the log
                "HOST": "127.0.0.1",
                "TOKENBUDGET_POD_NAME": name,
                "TOKENBUDGET_POD_UID": "pod-" + name,
                "TOKENBUDGET_CONTAINER": "litellm",
                "TOKENBUDGET_POLICY_DIR": str(self.directory / "policy"),
            }
        )
        if redis_url:
            environ["TOKENBUDGET_REDIS_URL"] = redis_url
        if agent:
            environ["LITELLM_WORKER_STARTUP_HOOKS"] = "tokenbudget_agent:start"
        environ.update(env or {})
        if workers > 1 and self.version >= (1, 92):  # where LiteLLM has it
            arguments = [*arguments, "--timeout_worker_healthcheck", str(healthcheck)]
        self.log = open(self.directory / "log", "w")
        self.process = subprocess.Popen(
            [
                str(venv / "bin" / "litellm"),
                "--config",
                "config.yaml",
                "--port",
                str(self.port),
                "--host",
                "127.0.0.1",
                "--num_workers",
                str(workers),
                *arguments,
            ],
            cwd=self.directory,
            env=environ,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self, timeout=240):
        deadline = time.time() + timeout
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/readiness", timeout=2):
                    return self
            except OSError:
                self.alive()
                assert time.time() < deadline, f"LiteLLM was not ready in {timeout} s:\n{self.text()[-3000:]}"
                time.sleep(0.2)

    def alive(self):
        """Fails with the end of the log when the process has ended."""
        code = self.process.poll()
        assert code is None, f"LiteLLM ended ({code}):\n{self.text()[-6000:]}"

    def text(self):
        return (self.directory / "log").read_text()

    def post(self, path, body, timeout=60, headers=None):
        """(status, headers, body)"""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode(),
            {"content-type": "application/json", "authorization": "Bearer " + KEY, **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as r:
                return r.status, dict(r.headers), r.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, dict(e.headers), e.read().decode()

    def hang_up(self, path, body, after):
        """Sends a request and closes the connection after so many seconds."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            data = json.dumps(body).encode()
            connection.sendall(
                (
                    f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
                    f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
                ).encode()
                + data
            )
            time.sleep(after)

    def get(self, path):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", headers={"authorization": "Bearer " + KEY}
        )
        with urllib.request.urlopen(request, timeout=30) as r:
            return json.loads(r.read())

    def chat(self, max_tokens=100, model="gpt", **more):
        return self.post(
            "/v1/chat/completions",
            {
                "model": model,
                "max_tokens": max_tokens,
                "messages": [{"role": "user", "content": "hello there"}],
                **more,
            },
        )

    def stop(self, sig=signal.SIGTERM, timeout=30):
        """Sends the signal to the first process only, as the kubelet does."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.log.close()
