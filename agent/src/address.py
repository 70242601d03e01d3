"""Where the ledger is: the Redis URL, TLS, Sentinel, Cluster."""

from __future__ import annotations

import functools
import json
import re
import socket
import ssl
import urllib.parse
from collections.abc import Mapping
from typing import Any

import redis

from .constants import NO_PARSE, SENTINEL_PORT, URL_FAULT
from .shapes import Node


def redis_url(env: Mapping[str, str]) -> str | None:
    """The ledger's URL, if one is set: the operator's, else LiteLLM's (as src/litellm/redis_source.rs)."""
    for name in ("TOKENBUDGET_REDIS_URL", "REDIS_URL"):
        if env.get(name):
            return env[name]
    quote = functools.partial(urllib.parse.quote, safe="")
    user, password = env.get("REDIS_USERNAME") or "", env.get("REDIS_PASSWORD")
    scheme = "rediss" if (env.get("REDIS_SSL") or "").strip().lower() in ("1", "true", "yes") else "redis"
    login = "%s:%s@" % (quote(user), quote(password)) if password else ""

    def at(host: str, port: str | int) -> str:
        return ("[%s]:%d" if ":" in host and host[0] != "[" else "%s:%d") % (host, int(port))

    if env.get("REDIS_SENTINEL_NODES"):
        hosts = ",".join(at(host, port) for host, port in json.loads(env["REDIS_SENTINEL_NODES"]))
        options, password = "", env.get("REDIS_SENTINEL_PASSWORD")
        if password:
            options = "?" + ("sentinel_username=%s&" % quote(user) if user else "")
            options += "sentinel_password=" + quote(password)
        return "%s+sentinel://%s%s/%s%s" % (scheme, login, hosts, env.get("REDIS_SERVICE_NAME", ""), options)
    if env.get("REDIS_HOST"):
        return "%s://%s%s" % (scheme, login, at(env["REDIS_HOST"], env.get("REDIS_PORT") or 6379))
    return None


class Address:
    """What a Redis URL says, for redis-py: one server, or the Sentinels that know it.

    src/ledger/redis/address.rs reads it alike (tests/addresses.json). ValueError, which does not quote it,
    if it cannot be used."""

    def __init__(self, url: str, ca: str = "") -> None:
        scheme, _, rest = url.strip().partition("://")
        rest, _, options = rest.partition("?")
        self.given, self.ca, self.service = (url, ca), ca, ""
        self.sentinels: list[dict[str, Any]] = []
        if not url.strip():
            raise ValueError(URL_FAULT % "it is empty")
        if scheme not in ("redis", "rediss", "redis+sentinel", "rediss+sentinel"):
            raise ValueError(
                URL_FAULT % "it does not start with redis:// or rediss://, nor with "
                "redis+sentinel:// or rediss+sentinel://"
            )
        if scheme.endswith("+sentinel"):
            scheme = scheme.partition("+")[0]
            authority, _, path = rest.partition("/")
            login, at, hosts = authority.rpartition("@")
            self.service, _, db = path.partition("/")
            if not re.fullmatch("[A-Za-z0-9._-]+", self.service):
                raise ValueError(
                    URL_FAULT % "it names no service of the Sentinels: "
                    "%s+sentinel://[user:password@]host:port[,host:port]/service[/db]" % scheme
                )
            given = dict(urllib.parse.parse_qsl(options, keep_blank_values=True))
            login_there = {name: given.pop("sentinel_" + name, None) for name in ("username", "password")}
            if given:
                raise ValueError(
                    URL_FAULT % "it has other options than sentinel_username and sentinel_password"
                )
            for host in hosts.split(","):
                one = self.read(scheme, host, SENTINEL_PORT)
                self.sentinels.append({**one, **login_there})
            rest = login + at + hosts.partition(",")[0] + "/" + db
        self.server = self.read(scheme, rest, 6379)

    def read(self, scheme: str, rest: str, port: int) -> dict[str, Any]:
        """redis-py's arguments of `[user:password@]host[:port][/db]`."""
        try:
            parts = urllib.parse.urlsplit("redis://" + rest)
            port, parses = parts.port or port, parts.hostname and "#" not in rest
        except ValueError:
            parses = False
        if not parses:
            raise ValueError(URL_FAULT % NO_PARSE)
        if not re.fullmatch("/*[0-9]*/*", parts.path):
            raise ValueError(URL_FAULT % "its database is no number")
        made: dict[str, Any] = {
            "host": parts.hostname,
            "port": port,
            "username": urllib.parse.unquote(parts.username or "") or None,
            "password": urllib.parse.unquote(parts.password or "") or None,
            "db": int(parts.path.strip("/") or 0),
        }
        if scheme == "rediss":
            made.update(connection_class=TlsConnection, ssl_check_hostname=True)
            if self.ca:
                made["ssl_ca_data"] = self.ca
        return made


class TlsConnection(redis.SSLConnection):
    """Trusts the CA that it is given alone, as the operator does, also one without a key usage, which Python
    3.13 takes for none. In a redis-py that does not call this, what the constructor was given holds."""

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
        context = ssl.create_default_context(cadata=self.ca_data)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context.wrap_socket(sock, server_hostname=self.host)


def moved_to(error: Exception) -> Node | None:
    """Where a node of a cluster sends the caller, if it does; below redis-py 6 a text alone says so."""
    if isinstance(error, redis.exceptions.MovedError):
        return error.host, error.port
    found = re.match(r"MOVED \d+ (\S*):(\d+)$", str(error))
    return (found[1], int(found[2])) if found else None
