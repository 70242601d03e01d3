"""A real redis-server on a free port."""

import os
import subprocess
import time
from pathlib import Path
from typing import Optional

import redis

from .ports import free_port

DEFAULT = "/root/.cache/tokenbudget/redis-6.2.912183/redis-server"


class RedisServer:
    """Starts, stops and starts again one server process on one port."""

    password: Optional[str] = None

    def __init__(self, directory: Path):
        self.binary = os.environ.get("TOKENBUDGET_REDIS_SERVER", DEFAULT)
        assert os.access(self.binary, os.X_OK), (
            f"{self.binary} is not there: set TOKENBUDGET_REDIS_SERVER to a redis-server (6.2 or newer)"
        )
        self.directory, self.port, self.process = directory, free_port(), None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> "RedisServer":
        where = ("--port", str(self.port), "--bind", "127.0.0.1")
        return self.run(*where, "--save", "", "--appendonly", "no", *options)

    def run(self, *options: str) -> "RedisServer":
        self.process = subprocess.Popen(
            [self.binary, *options],
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.time() + 10
        while True:
            try:
                self.client().ping()
                return self
            except redis.ConnectionError:
                assert time.time() < deadline, "redis-server did not answer within 10 s"
                time.sleep(0.02)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self.password, decode_responses=True, socket_timeout=5)

    def start_as_node(self) -> "RedisServer":
        """In a cluster, whose nodes talk at their port + 10000."""
        while self.port > 55000:
            self.port = free_port()
        return self.start("--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{self.port}.conf")

    def start_as_sentinel(self, primary: "RedisServer", *lines: str) -> "RedisServer":
        """Of the service `ledger`; it takes it for dead after half a second."""
        config = self.directory / f"sentinel-{self.port}.conf"
        config.write_text(
            f"sentinel monitor ledger 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds ledger 500\n"
            "sentinel failover-timeout ledger 3000\n" + "".join(line + "\n" for line in lines)
        )
        return self.run(str(config), "--sentinel", "--port", str(self.port), "--bind", "127.0.0.1")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
