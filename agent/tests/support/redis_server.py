"""A real redis-server on a free port."""

import os
import subprocess
import time
from pathlib import Path
from typing import Optional

import pytest
import redis

from .ports import free_port

CACHE = Path.home() / ".cache/tokenbudget"
DEFAULT = str(CACHE / "redis-6.2.912183/redis-server")
TLS_DEFAULT = str(CACHE / "redis-tls/redis-server")


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
        log = self.directory / f"redis-{self.port}.log"
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [self.binary, *options], cwd=self.directory, stdout=out, stderr=subprocess.STDOUT
            )
        deadline = time.time() + 10
        while True:
            try:
                self.client().ping()
                return self
            except redis.ConnectionError:
                code = self.process.poll()
                assert code is None, f"redis-server ended ({code}):\n{log.read_text()[-2000:]}"
                assert time.time() < deadline, (
                    f"redis-server did not answer within 10 s:\n{log.read_text()[-2000:]}"
                )
                time.sleep(0.02)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self.password, decode_responses=True, socket_timeout=5)

    def start_as_node(self) -> "RedisServer":
        """In a cluster, of which it is the only node yet."""
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

    def start_with_tls(self, authority: "Authority", names: str) -> "RedisServer":
        """With a certificate for these names; plain connections are for the test."""
        self.binary = os.environ.get("TOKENBUDGET_REDIS_TLS_SERVER", TLS_DEFAULT)
        if not os.access(self.binary, os.X_OK):
            pytest.skip(
                f"there is no redis-server with TLS at {self.binary}: e2e/prepare redis-tls found none"
            )
        key, certificate = authority.sign(names)
        self.tls_port = free_port()
        files = ("--tls-key-file", str(key), "--tls-cert-file", str(certificate))
        more = ("--tls-ca-cert-file", str(authority.certificate), "--tls-auth-clients", "no")
        return self.start("--tls-port", str(self.tls_port), *files, *more)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Authority:
    """A CA, made by openssl as most are: without the extensions on which Python 3.13 insists of itself."""

    def __init__(self, directory: Path):
        self.directory, self.certificate = directory, directory / "ca.crt"
        directory.mkdir()
        new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=ours"
        self.openssl(new + " -keyout ca.key -out ca.crt")

    def sign(self, names: str) -> "tuple[Path, Path]":
        """The files of a key and its certificate."""
        (self.directory / "names").write_text(f"subjectAltName={names}\n")
        new = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=redis"
        self.openssl(new + " -keyout tls.key -out tls.csr")
        by_us = "x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names"
        self.openssl(by_us + " -out tls.crt")
        return self.directory / "tls.key", self.directory / "tls.crt"

    def openssl(self, words: str) -> None:
        subprocess.run(["openssl", *words.split()], cwd=self.directory, check=True, capture_output=True)
