"""The thread, behind real Sentinels: it finds the primary, and finds it again."""

import os
import signal
import socketserver
import threading
import time

import pytest
from support.acl import add_user, is_enough
from support.fake_operator import Operator, limit, policy
from support.member import Member, until
from support.redis_server import RedisServer

FOUND = 8.0  # half a second until the Sentinel sees it, up to two to promote, and the agent's back-off


class Three:
    """A primary with a replica, and a Sentinel."""

    def __init__(self, directory, password=None, watchword=None):
        self.all = []
        options = ["--requirepass", password, "--masterauth", password] if password else []
        self.primary = self.server(directory / "primary", password).start(*options)
        self.replica = self.server(directory / "replica", password).start(
            *options, "--replicaof", "127.0.0.1", str(self.primary.port)
        )
        lines = [f"sentinel auth-pass ledger {password}"] if password else []
        if watchword:
            lines += [f"requirepass {watchword}"]
            lines += ["user asker on >question -@all +sentinel|get-master-addr-by-name"]
        self.sentinel = self.server(directory / "sentinel", watchword).start_as_sentinel(self.primary, *lines)
        until(lambda: self.replica.client().info("replication")["master_link_status"] == "up", 15)
        until(lambda: len(self.sentinel.client().execute_command("SENTINEL REPLICAS", "ledger")) == 1, 15)

    def server(self, directory, password):
        directory.mkdir()
        made = RedisServer(directory)
        made.password = password
        self.all.append(made)
        return made

    @property
    def url(self):
        """Its first Sentinel is not there."""
        return f"redis+sentinel://127.0.0.1:1,127.0.0.1:{self.sentinel.port}/ledger"

    def promoted(self):
        found = self.sentinel.client().execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", "ledger")
        return int(found[1]) == self.replica.port

    def follows(self):
        """Whether the replica has all that the primary has."""
        one, other = self.primary.client().info("replication"), self.replica.client().info("replication")
        return one["master_repl_offset"] == other["slave_repl_offset"]


@pytest.fixture
def three(tmp_path):
    made = Three(tmp_path)
    yield made
    for one in made.all:
        one.stop()


def lends(tb, three, tmp_path):
    pol = policy([limit()], beatMs=100)
    Operator(three.primary.client()).publish(pol)
    member = Member(tb, three.url, tmp_path / "pod-1", [pol])
    until(lambda: member.book().answered and member.book().grant == 20000)
    until(three.follows)
    return member


def finds_again(member):
    """Another server answers: it learns."""
    until(lambda: not member.ledger.down and member.book().state == "learning", FOUND)
    assert member.book().grant == 20000


def test_the_new_primary_is_found_when_the_old_one_dies(tb, three, tmp_path, caplog):
    member = lends(tb, three, tmp_path)
    three.primary.stop()
    finds_again(member)
    assert three.promoted()
    assert sum("does not answer" in r.message for r in caplog.records) >= 1
    member.stop()


def test_the_new_primary_is_found_when_the_old_one_hangs(tb, three, tmp_path):
    member = lends(tb, three, tmp_path)
    os.kill(three.primary.process.pid, signal.SIGSTOP)
    finds_again(member)
    os.kill(three.primary.process.pid, signal.SIGCONT)
    boot = member.book().boot
    until(lambda: member.book().boot > boot + 1.0)
    assert member.book().state == "learning"
    member.stop()


def test_a_primary_that_became_a_replica_is_left(tb, three, tmp_path, caplog):
    member = lends(tb, three, tmp_path)

    def begun():
        try:
            return three.sentinel.client().execute_command("SENTINEL FAILOVER", "ledger")
        except Exception:
            return False

    until(begun, 15)
    until(three.promoted, 15)
    three.primary.client().replicaof("127.0.0.1", three.replica.port)
    finds_again(member)
    assert "READONLY" in caplog.text or "read only" in caplog.text
    member.stop()


def test_a_sentinel_that_does_not_answer_costs_a_call_its_time_once(tb, three):
    url = three.url.replace("127.0.0.1:1,", "")
    silent = RedisServer(three.primary.directory).start()  # as a Sentinel that hangs
    os.kill(silent.process.pid, signal.SIGSTOP)
    try:
        agent = tb.Agent(
            environ={"TOKENBUDGET_REDIS_URL": url.replace("//", "//127.0.0.1:%d," % silent.port, 1)}
        )
        ledger, taken = tb.Ledger(agent), []
        for _ in range(2):
            started = time.time()
            assert ledger.connect().ping()
            taken.append(time.time() - started)
        assert taken[0] > tb.READ_TIMEOUT - 0.1
        assert taken[0] < tb.READ_TIMEOUT + tb.CONNECT_TIMEOUT
        assert taken[1] < tb.READ_TIMEOUT / 2
    finally:
        os.kill(silent.process.pid, signal.SIGCONT)
        silent.stop()


def test_both_log_in_and_no_password_is_logged(tb, tmp_path, caplog):
    three = Three(tmp_path, "hunter2", "watchword")
    try:
        url = three.url.replace("//", "//:hunter2@", 1)
        pol = policy([limit()], beatMs=100)
        Operator(three.primary.client()).publish(pol)
        for number, (there, answers) in enumerate(
            [
                (url + "?sentinel_password=watchword", True),
                (url + "?sentinel_username=asker&sentinel_password=question", True),
                (url + "?sentinel_password=swordfish", False),
                (url, False),
                (url.replace("hunter2", "swordfish") + "?sentinel_password=watchword", False),
            ]
        ):
            member = Member(tb, there, tmp_path / str(number), [pol])
            until(lambda one=member, answers=answers: one.book().answered if answers else one.ledger.down)
            member.stop()
        assert not any(word in caplog.text for word in ("hunter2", "watchword", "swordfish"))
    finally:
        for one in three.all:
            one.stop()


class Parrot(socketserver.BaseRequestHandler):
    """Says back what it was sent, as Redis does with a command that it does not know."""

    def handle(self):
        words = self.request.recv(4096).replace(b"\r\n", b" ")
        self.request.sendall(b"-ERR unknown command " + words + b"\r\n")


@pytest.mark.parametrize("kind", ["redis", "redis+sentinel"])
def test_what_a_server_says_back_is_logged_without_passwords(tb, tmp_path, caplog, kind):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Parrot) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        more = "/ledger?sentinel_password=swordfish" if kind == "redis+sentinel" else ""
        url = f"{kind}://:hunter2@127.0.0.1:{server.server_address[1]}{more}"
        member = Member(tb, url, tmp_path / "pod-1", [policy([limit()], beatMs=100)])
        until(lambda: member.ledger.down)
        member.stop()
        server.shutdown()
    assert "***" in caplog.text
    assert "hunter2" not in caplog.text
    assert "swordfish" not in caplog.text


def test_the_documented_user_is_enough(tb, three, tmp_path):
    login = add_user(three.primary)
    pol = policy([limit()], beatMs=100)
    Operator(three.primary.client()).publish(pol)
    url = three.url.replace("://", f"://{login}")
    member = Member(tb, url, tmp_path / "pod-1", [pol])
    try:
        is_enough(three.primary, member)
    finally:
        member.stop()
