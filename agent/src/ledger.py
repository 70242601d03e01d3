"""The thread that talks to Redis: beats, draws, the final call, the policies."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from typing import Any

import redis

from .address import Address, moved_to, redis_url
from .agent import Agent
from .constants import (
    AGENT,
    BACKOFF_MAX,
    CALL_SCRIPT,
    CONNECT_TIMEOUT,
    DRAW_GAP,
    MOST_HOPS,
    READ_TIMEOUT,
    REPORT_EVERY,
    log,
)
from .governor import Governor
from .shapes import Node, Policy


class Ledger(threading.Thread):
    """Talks to Redis: beats, draws and the final call; one connection, one call at a time, growing seq."""

    known: Address | None
    clients: dict[Node | None, redis.Redis]
    nodes: dict[str, Node]
    entry: Node | None
    heard_of: Node | None
    sha: str | None
    detached: dict[str, str | None]

    def __init__(self, agent: Agent) -> None:
        super().__init__(name="tokenbudget-ledger", daemon=True)
        self.agent, self.pid = agent, os.getpid()
        self.event, self.stopping, self.done = threading.Event(), False, False
        self.drawing = False
        self.calls = threading.Lock()  # one call at a time, the final one included
        # Connections by node; None is the URL's own, or its Sentinels' primary. In a cluster MOVED says which
        # node has a TokenBudget.
        self.known, self.clients, self.nodes, self.entry, self.heard_of = None, {}, {}, None, None
        self.sha, self.seq = None, 0
        self.backoff, self.retry_at, self.down = 0.0, -1e9, False
        self.file_at, self.detached = -1e9, {}
        agent.draw = self.request_draw

    def request_draw(self) -> None:
        self.drawing = True
        self.event.set()

    def run(self) -> None:
        while not self.stopping:
            try:
                self.turn()
            except Exception as error:  # the thread must live
                self.agent.fault("ledger", error)
                time.sleep(0.5)

    def turn(self) -> None:
        """One round: the policy file, the calls that are due, then sleep."""
        agent, now = self.agent, self.agent.clock.boot()
        drawing, self.drawing = self.drawing, False
        self.event.clear()
        if now >= self.file_at:
            self.read_policies()
        wake = self.file_at
        # The longest unheard first: one that fails starts the wait for all, and must not always be the first.
        for governor in sorted(agent.governors.values(), key=lambda governor: governor.last_call):
            with agent.lock:
                wants = any(agent.wanted(book)[0] for book in governor.books.values())
            beat = now >= governor.next_beat
            if now >= self.retry_at and (beat or (wants and now - governor.last_call >= DRAW_GAP)):
                try:
                    self.call(governor, beat)
                except Exception as error:  # the other TokenBudgets go on
                    governor.last_call = governor.next_beat = agent.clock.boot() + 0.5
                    agent.fault("ledger", error)
                now = agent.clock.boot()
            wake = min(wake, governor.next_beat)
            if wants or drawing:
                wake = min(wake, governor.last_call + DRAW_GAP)
        wake = max(wake, self.retry_at)
        self.event.wait(max(0.001, min(wake - now, 1.0)))
        gap = (
            min((g.last_call for g in agent.governors.values()), default=-1e9) + DRAW_GAP - agent.clock.boot()
        )
        if 0 < gap <= DRAW_GAP and not self.stopping:
            time.sleep(gap)

    # -- one call

    def address(self) -> Address:
        env = self.agent.env
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
            **where,
        )
        return redis.Redis(connection_pool=pool)

    def primary(self, address: Address) -> Node:
        """Where the Sentinels say that the server is. Who does not answer is asked last the next time."""
        said, started = "", self.agent.clock.boot()
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
            if self.agent.clock.boot() - started > READ_TIMEOUT + CONNECT_TIMEOUT:
                break
        raise redis.ConnectionError("no Sentinel says where the server is: " + said)

    def drop(self) -> None:
        """After a fault everything starts at the URL again, and with its Sentinels."""
        clients, self.clients, self.nodes = list(self.clients.values()), {}, {}
        for client in clients:
            try:
                client.close()
                client.connection_pool.disconnect()
            except Exception:
                pass

    def reach(self, governor: Governor) -> redis.Redis:
        """A connection that answers: while there is none, nothing of a call can have reached the ledger."""
        node = self.nodes.get(governor.uid, self.entry)
        if node not in self.clients:
            try:
                # Kept before it answers: what is kept is closed after a fault.
                client = self.clients[node] = self.connect(node)
                client.ping()
            except Exception:
                if node == self.entry:
                    # Any other node of a cluster can tell; next time it is the URL's turn again.
                    self.entry = None if self.entry else self.heard_of
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

    def call(self, governor: Governor, beat: bool = True, final: bool = False) -> bool:
        """A beat, a draw (beat False) or the final call of one TokenBudget."""
        agent = self.agent
        with self.calls:
            if self.done or (self.stopping and not final):
                return False
            boot = agent.clock.boot()
            governor.last_call = boot
            governor.calls.add(agent.minute(), beats=int(beat), draws=int(not beat))
            if beat:
                governor.next_beat = boot + governor.beat
            try:
                self.reach(governor)
            except Exception as error:
                self.drop()
                self.away(governor, error, agent.clock.boot(), "")
                return False
            self.seq += 1
            with agent.lock:
                boot, wall = agent.clock.boot(), agent.clock.wall()
                books = list(governor.books.values())
                keys = [governor.key("meta"), governor.key("members")] + governor.book_keys()
                sent = [book.prepare(beat, *agent.wanted(book), boot, wall, final) for book in books]
                for book in books:
                    book.quiet = boot
                if beat:
                    governor.next_beat = boot + governor.time_to_beat(boot)
                version = governor.policy.get("version", "")
            report = ""
            try:
                report = "" if final else self.report(governor, boot)
            except Exception as error:  # grants do not depend on it
                agent.fault("report", error)
            args: list[str | int] = [agent.member, self.seq, int(final), version, report]
            for one in sent:
                args += one.args()
            args += [one.leaving() for one in sent]
            try:
                version, policy, answers, ledger_ms = self.execute(governor, keys, args)
                received = agent.clock.boot()
                late = received - boot
                if late > READ_TIMEOUT + CONNECT_TIMEOUT:
                    raise redis.TimeoutError("the answer took %.1f s" % late)
            except Exception as error:
                self.drop()
                self.away(governor, error, boot, report)
                return False
            if self.down:
                log.warning("tokenbudget: the ledger answers again")
            self.down, self.backoff, self.retry_at = False, 0.0, -1e9
            with agent.lock:
                agent.drift.note(boot, received, int(float(ledger_ms)) / 1000)
                good = [book.apply(one, answer) for book, one, answer in zip(books, sent, answers)]
                for book in books:
                    book.ring.guard = agent.drift.guard()
                if any(good) or not good:
                    governor.last_good = boot
            if policy:
                self.new_policy(governor, json.loads(policy))
            agent.wake()
            return True

    def away(self, governor: Governor, error: Exception, boot: float, report: str) -> None:
        if report:
            governor.last_report = None  # it may not have arrived
        self.backoff = min(BACKOFF_MAX, max(0.1, self.backoff * 2))
        self.retry_at = boot + self.backoff
        if not self.down:
            self.down = True
            log.error(
                "tokenbudget: the ledger does not answer (%s: %s); grants hold for a lease, then %s",
                type(error).__name__,
                self.masked(str(error))[:200],
                "LiteLLM's own limit, in every process (onLedgerLoss: Open)"
                if governor.open_on_loss
                else "the safe share",
            )

    def masked(self, text: str) -> str:
        """A server may quote what it does not know."""
        for where in [self.known.server, *self.known.sentinels] if self.known else []:
            if where["password"]:
                text = text.replace(where["password"], "***")
        return text

    def report(self, governor: Governor, now: float) -> str:
        adapter, problems = self.agent.adapter, self.agent.problems()
        declared = adapter.declared(governor) if adapter else None
        env = self.agent.env
        due = now - governor.report_at >= REPORT_EVERY
        if due:
            governor.figures = self.agent.figures(governor, now)
        state = (
            "Degraded"
            if problems
            else "Starting"
            if declared is None
            else ("Observing" if governor.mode == "Observe" else "Enforcing")
        )
        text = json.dumps(
            {
                "pod": env.get("TOKENBUDGET_POD_NAME", ""),
                "podUid": env.get("TOKENBUDGET_POD_UID", ""),
                "node": env.get("TOKENBUDGET_NODE_NAME", ""),
                "container": env.get("TOKENBUDGET_CONTAINER", ""),
                "worker": self.pid,
                "startedMs": self.agent.started_ms,
                "agent": AGENT,
                "policy": governor.policy.get("version", ""),
                "state": state,
                "problems": problems,
                "declared": declared,
                **governor.figures,
            },
            sort_keys=True,
        )
        if text == governor.last_report and not due:
            return ""
        governor.last_report, governor.report_at = text, now
        return text

    # -- policies

    def new_policy(self, governor: Governor, policy: Policy) -> None:
        agent = self.agent
        with agent.lock:
            if policy.get("mode") == "Detached":
                agent.governors.pop(governor.uid, None)
                governor.mode = "Observe"  # requests that wait hold its books
                self.detached[governor.uid] = governor.policy.get("version")
                log.warning("tokenbudget: %s is detached, LiteLLM's own limits are back", governor.name)
            else:
                policy.setdefault("uid", governor.uid)
                governor.update(policy, agent.clock.boot())
                governor.next_beat = 0.0
        agent.wake()
        if agent.adapter:
            agent.adapter.changed()

    def read_policies(self) -> None:
        """The ConfigMap: TokenBudgets that are not known yet, and which ones are gone without a word."""
        agent, now = self.agent, self.agent.clock.boot()
        path = os.path.join(agent.env.get("TOKENBUDGET_POLICY_DIR") or "/etc/tokenbudget", "policy.json")
        try:
            with open(path, encoding="utf-8") as file:
                policies = json.load(file)["tokenBudgets"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.file_at = now + 1.0
            if isinstance(error, FileNotFoundError):
                self.detached.clear()
            return
        self.file_at = now + (1.0 if not policies else 5.0)
        changed = False
        with agent.lock:
            policies = [policy for policy in policies if isinstance(policy, dict)]
            for policy in policies:
                uid = policy.get("uid")
                if not uid or uid in agent.governors or policy.get("mode") == "Detached":
                    continue
                if uid in self.detached and self.detached[uid] == policy.get("version"):
                    continue
                try:
                    agent.governors[uid] = Governor(policy, now)
                except Exception as error:  # of another version, or broken: the others go on
                    agent.fault("policy file", error)
                    continue
                changed = True
            named = {policy.get("uid") for policy in policies}
            # What comes back to a file that was without it is meant so: its operator was installed again.
            self.detached = {uid: version for uid, version in self.detached.items() if uid in named}
            for uid, governor in list(agent.governors.items()):
                silent = now - (governor.last_good if governor.last_good is not None else governor.started)
                if uid not in named and not self.down and silent > governor.lease + 65:
                    del agent.governors[uid]  # closed while we could not hear it
                    governor.mode = "Observe"
                    changed = True
        if changed and agent.adapter:
            agent.adapter.changed()

    def leave(self) -> None:
        """The final call of every TokenBudget: what is left of the grants goes back at once. Idempotent."""
        if self.done or self.stopping or os.getpid() != self.pid:
            return
        self.stopping = True
        self.event.set()
        with self.calls:  # what is lent by a call that is under way goes back, too
            called = [g for g in list(self.agent.governors.values()) if g.last_call > -1e9]
        for governor in called:
            if not self.down:
                self.call(governor, final=True)
        self.done = True
        self.drop()
