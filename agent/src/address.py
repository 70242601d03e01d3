"""Where the ledger is: the Redis URL, TLS, Sentinel, Cluster."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import socket
import ssl
import urllib.parse
from collections.abc import Mapping
from typing import Any

from .clock import Clock
from .constants import (
    CALL_SCRIPT,
    CONNECT_TIMEOUT,
    MOST_HOPS,
    NO_PARSE,
    READ_TIMEOUT,
    SENTINEL_PORT,
    URL_FAULT,
)
from .governor import Governor
from .shapes import Node

try:
    import redis as redis  # noqa: PLC0414 - the ledger has it from here
    from redis import SSLConnection
except Exception:  # an error of this file would end LiteLLM: `start` says it instead
    SSLConnection = object  # type: ignore[assignment, misc]

NO_NOTICES: dict[str, Any] = {}  # of maintenance, during which redis-py would wait ten seconds for an answer
try:
    from redis.maint_notifications import MaintNotificationsConfig

    NO_NOTICES["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
except Exception:  # an older redis-py knows none
    pass


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


class TlsConnection(SSLConnection):
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


class Connections:
    """To where the ledger is, one for each node. None is the URL's own, or its Sentinels' primary; in a
    cluster MOVED says which node has a TokenBudget."""

    known: Address | None
    clients: dict[Node | None, redis.Redis]
    nodes: dict[str, Node]
    entry: Node | None
    heard_of: Node | None
    asked: Node | None  # last
    sha: str | None

    def __init__(self, clock: Clock, env: Mapping[str, str]) -> None:
        self.clock, self.env = clock, env
        self.known, self.clients, self.nodes, self.sha = None, {}, {}, None
        self.entry = self.heard_of = self.asked = None

    def address(self) -> Address:
        env = self.env
        url = redis_url(env)
        if url is None:
            raise redis.ConnectionError(
                "no Redis is configured (TOKENBUDGET_REDIS_URL, or LiteLLM's own REDIS_...)"
            )
        # Both are from one Secret.
        ca = env.get("TOKENBUDGET_REDIS_CA", "") if env.get("TOKENBUDGET_REDIS_URL") else ""
        if self.known is None or self.known.given != (url, ca):
            self.known = Address(url, ca)
        return self.known

    def connect(self, node: Node | None = None) -> redis.Redis:
        address = self.address()
        if node is None and address.sentinels:
            node = self.primary(address)
        where = address.server
        if node:
            where = {**where, "host": node[0] or where["host"], "port": node[1]}
        return self.client(where)

    def client(self, where: dict[str, Any]) -> redis.Redis:
        pool = redis.ConnectionPool(
            socket_timeout=READ_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            decode_responses=True,
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
            **NO_NOTICES,
            **where,
        )
        return redis.Redis(connection_pool=pool)

    def primary(self, address: Address) -> Node:
        """Where the Sentinels say that the server is. Who does not answer is asked last the next time."""
        said, started = "", self.clock.boot()
        for _ in range(len(address.sentinels)):
            where = address.sentinels[0]
            client: Any = self.client(where)
            try:
                found = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", address.service)
                if found:
                    return found[0], int(found[1])
                said = "they know no service %s" % address.service
            except redis.RedisError as error:
                said = "%s:%d: %s" % (where["host"], where["port"], error)
            finally:
                client.close()
                client.connection_pool.disconnect()
            address.sentinels.append(address.sentinels.pop(0))
            if self.clock.boot() - started > READ_TIMEOUT + CONNECT_TIMEOUT:
                break
        raise redis.ConnectionError("no Sentinel says where the server is: " + said)

    def drop(self) -> None:
        """Everything starts at the URL again, and with its Sentinels."""
        self.nodes = {}
        for node in list(self.clients):
            self.hang_up(node)

    def hang_up(self, node: Node | None) -> None:
        client = self.clients.pop(node, None)
        try:
            if client is not None:
                client.close()
                client.connection_pool.disconnect()
        except Exception:
            pass

    def node(self, governor: Governor) -> Node | None:
        return self.nodes.get(governor.uid, self.entry)

    def reach(self, governor: Governor) -> redis.Redis:
        """A connection that answers: while there is none, nothing of a call can have reached the ledger."""
        node = self.asked = self.node(governor)
        if node not in self.clients:
            try:
                # Kept before it answers: what is kept is closed after a fault.
                client = self.clients[node] = self.connect(node)
                client.ping()
            except Exception:
                self.hang_up(node)
                raise
        return self.clients[node]

    def execute(self, governor: Governor, keys: list[str], args: list[str | int]) -> Any:
        """Runs the call script where the TokenBudget is. A node that answers MOVED has done nothing."""
        if self.sha is None:
            self.sha = hashlib.sha1(CALL_SCRIPT.encode()).hexdigest()
        for _ in range(MOST_HOPS):
            client = self.reach(governor)
            try:
                try:
                    return client.evalsha(self.sha, len(keys), *keys, *args)
                except redis.exceptions.NoScriptError:
                    return client.eval(CALL_SCRIPT, len(keys), *keys, *args)
            except redis.ResponseError as error:
                node = moved_to(error)
                if node is None:
                    raise
                self.nodes[governor.uid] = self.heard_of = node
        raise redis.ConnectionError("sent from node to node %d times" % MOST_HOPS)

    def masked(self, text: str) -> str:
        """A server may quote what it does not know."""
        for where in [self.known.server, *self.known.sentinels] if self.known else []:
            if where["password"]:
                text = text.replace(where["password"], "***")
        return text
