"""The thread that talks to Redis: beats, draws, the final call, the policies."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from .address import Connections, redis
from .agent import Agent
from .book import Book, Sent
from .constants import (
    AGENT,
    CONNECT_TIMEOUT,
    DRAW_GAP,
    FILE_GONE,
    READ_TIMEOUT,
    REPORT_EVERY,
    log,
)
from .governor import Governor
from .shapes import Answer, Policy
from .siblings import siblings


class Ledger(Connections, threading.Thread):
    """Talks to Redis: beats, draws and the final call; one connection, one call at a time, growing seq."""

    detached: dict[str, str | None]

    def __init__(self, agent: Agent, chance: Callable[[], float] = random.random) -> None:
        threading.Thread.__init__(self, name="tokenbudget-ledger", daemon=True)
        Connections.__init__(self, agent.clock, agent.env)
        self.agent, self.chance, self.pid = agent, chance, os.getpid()
        self.event, self.stopping, self.done = threading.Event(), False, False
        self.drawing = False
        self.calls = threading.Lock()  # one call at a time, the final one included
        self.seq, self.said = 0, False  # said: that the ledger does not answer
        self.file_at, self.detached = -1e9, {}
        self.file_gone: float | None = None  # since when there is no policy file
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
        # Who is answered goes first: who is not may take a second. Then the longest unheard: one that fails
        # starts the wait for all on its node, and must not always be the first.
        for governor in sorted(agent.governors.values(), key=lambda one: (one.down, one.last_call)):
            wants = agent.waiting.wants(governor.books.values())
            beat = now >= governor.next_beat
            if now >= governor.retry_at and (beat or (wants and now - governor.last_call >= DRAW_GAP)):
                try:
                    self.call(governor, beat)
                except Exception as error:  # the other TokenBudgets go on
                    governor.last_call = governor.next_beat = agent.clock.boot() + 0.5
                    agent.fault("ledger", error)
                now = agent.clock.boot()
            due = governor.next_beat
            if wants or drawing:
                due = min(due, governor.last_call + DRAW_GAP)
            wake = min(wake, max(due, governor.retry_at))
        self.event.wait(max(0.001, min(wake - now, 1.0)))
        gap = (
            min((g.last_call for g in agent.governors.values()), default=-1e9) + DRAW_GAP - agent.clock.boot()
        )
        if 0 < gap <= DRAW_GAP and not self.stopping:
            time.sleep(gap)

    # -- one call

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
            if governor.down:
                self.nodes.pop(governor.uid, None)  # it may have moved: the URL knows
            if self.tried(governor, self.reach, governor) is None:
                return False
            boot, sent, keys, args = self.prepare(governor, beat, final)
            answered = self.tried(governor, self.exchange, governor, keys, args, boot)
            if answered is None:
                return False
            self.take(governor, boot, sent, *answered)
            return True

    def prepare(
        self, governor: Governor, beat: bool, final: bool
    ) -> tuple[float, list[tuple[Book, Sent]], list[str], list[str | int]]:
        """What a call carries."""
        agent = self.agent
        self.seq += 1
        boot, wall = agent.clock.boot(), agent.clock.wall()
        books, sent = list(governor.books.values()), []
        keys = [governor.key("meta"), governor.key("members")] + governor.book_keys()
        for book in books:
            with agent.lock:  # for each: there may be many, and no request is to wait for all of them
                sent.append(book.prepare(beat, *agent.waiting.wanted(book), boot, wall, final))
                book.quiet = boot
        with agent.lock:
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
        return boot, list(zip(books, sent)), keys, args

    def exchange(
        self, governor: Governor, keys: list[str], args: list[str | int], boot: float
    ) -> tuple[float, Any, list[Answer], float]:
        """The answer, and when it came."""
        _, policy, answers, ledger_ms = self.execute(governor, keys, args)
        received = self.agent.clock.boot()
        if received - boot > READ_TIMEOUT + CONNECT_TIMEOUT:
            raise redis.TimeoutError("the answer took %.1f s" % (received - boot))
        return received, policy, answers, int(float(ledger_ms)) / 1000

    def take(
        self,
        governor: Governor,
        boot: float,
        sent: list[tuple[Book, Sent]],
        received: float,
        policy: Any,
        answers: list[Answer],
        ledger: float,
    ) -> None:
        """What the answer says holds from now on."""
        agent = self.agent
        governor.heard()
        if self.said and not self.down:
            self.said = False
            log.warning("tokenbudget: the ledger answers again")
        agent.drift.note(boot, received, ledger)
        good = []
        for (book, one), answer in zip(sent, answers):
            with agent.lock:
                good.append(book.apply(one, answer))
                book.ring.guard = agent.drift.guard()
        with agent.lock:
            governor.renewed()
            if any(good) or not good:
                governor.last_good = boot
        if policy:
            self.new_policy(governor, json.loads(policy))
        agent.waiting.wake()

    @property
    def down(self) -> bool:
        """Whether any TokenBudget's last call failed."""
        return any(governor.down for governor in list(self.agent.governors.values()))

    def tried(self, governor: Governor, what: Callable[..., Any], *args: Any) -> Any:
        """None after a fault of the ledger's."""
        try:
            return what(*args)
        except Exception as error:
            self.away(governor, error)
            return None

    def away(self, governor: Governor, error: Exception) -> None:
        """A connection that fails is that of all TokenBudgets on its node. An error that was answered is its
        own TokenBudget's, while others are answered over the same connection."""
        node, now = self.asked, self.agent.clock.boot()
        there = [g for g in list(self.agent.governors.values()) if self.node(g) == node]
        governor.back_off(now, self.chance())
        governor.reported = None  # it may not have arrived
        answer = isinstance(error, redis.ResponseError) and node in self.clients
        if not (answer and any(g.last_good is not None and not g.down for g in there)):
            self.hang_up(node)
            if node == self.entry:
                # Any other node of a cluster can tell; next time it is the URL's turn again.
                self.entry = None if self.entry else self.heard_of
        if not answer:
            for one in there:
                one.down, one.backoff, one.retry_at = True, governor.backoff, governor.retry_at
        if not self.said and now - self.agent.logged.get("ledger away", -1e9) >= 60:
            self.said, self.agent.logged["ledger away"] = True, now
            log.error(
                "tokenbudget: the ledger does not answer for %s (%s: %s); grants hold for a lease, then %s",
                governor.name,
                type(error).__name__,
                self.masked(str(error))[:200],
                "LiteLLM's own limit, in every process (onLedgerLoss: Open)"
                if governor.open_on_loss
                else "the safe share",
            )

    def report(self, governor: Governor, now: float) -> str:
        adapter, problems = self.agent.adapter, self.agent.problems()
        rows, version = adapter.declared_rows if adapter else None, governor.policy.get("version", "")
        due = now - governor.report_at >= REPORT_EVERY
        made_of = (rows, problems, governor.mode, version)
        if made_of == governor.reported and not due:
            return ""  # the rows may be many
        declared, env = adapter.declared(governor) if adapter else None, self.agent.env
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
                "siblings": siblings(self.pid, os.getppid()),
                "agent": AGENT,
                "policy": version,
                "state": state,
                "problems": problems,
                "declared": declared,
                **governor.figures,
            },
            sort_keys=True,
        )
        governor.reported, governor.report_at = made_of, now
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
        agent.waiting.ask_again()
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
                self.file_gone = now if self.file_gone is None else self.file_gone
                if self.drop_unnamed(set(), now, now - self.file_gone > FILE_GONE) and agent.adapter:
                    agent.adapter.changed()
            return
        self.file_at, self.file_gone = now + (1.0 if not policies else 5.0), None
        changed = False
        with agent.lock:
            policies = [policy for policy in policies if isinstance(policy, dict)]
            for policy in policies:
                uid = policy.get("uid")
                if not uid or policy.get("mode") == "Detached":
                    continue
                if uid in agent.governors:
                    try:
                        agent.governors[uid].narrow(policy, now, agent.clock.wall())
                    except Exception as error:
                        agent.fault("policy file", error)
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
        if (self.drop_unnamed(named, now) or changed) and agent.adapter:
            agent.adapter.changed()

    def drop_unnamed(self, named: set[Any], now: float, gone: bool = False) -> bool:
        """Forgets what the file does not name and no ledger has: it was closed while we did not hear it.

        gone: whatever the ledger says, which the operator may not have reached.
        """
        dropped = []
        with self.agent.lock:
            for uid, governor in list(self.agent.governors.items()):
                silent = now - (governor.last_good if governor.last_good is not None else governor.started)
                if uid not in named and (gone or (not governor.down and silent > governor.lease + 65)):
                    del self.agent.governors[uid]
                    governor.mode = "Observe"  # requests that wait hold its books
                    dropped.append(governor.name)
        for name in dropped:
            log.warning("tokenbudget: %s is gone, LiteLLM's own limits are back", name)
        return bool(dropped)

    def leave(self) -> None:
        """The final call of every TokenBudget: what is left of the grants goes back at once. Idempotent."""
        if self.done or self.stopping or os.getpid() != self.pid:
            return
        self.stopping = True
        self.event.set()
        with self.calls:  # what is lent by a call that is under way goes back, too
            called = [g for g in list(self.agent.governors.values()) if g.last_call > -1e9]
        for governor in called:
            if not governor.down:
                self.call(governor, final=True)
        self.done = True
        self.drop()
