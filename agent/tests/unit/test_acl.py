"""The Redis user of docs/operations.md is enough for the agent (behind a Sentinel: test_sentinel.py)."""

import pytest
from support.acl import add_user, denied, is_enough
from support.fake_operator import Operator, limit, policy
from support.member import Member, until
from support.redis_server import RedisServer


@pytest.fixture
def server(tmp_path):
    server = RedisServer(tmp_path).start()
    yield server
    server.stop()


def member_of(tb, server, login, tmp_path):
    pol = policy([limit()], beatMs=100)
    Operator(server.client()).publish(pol)
    return Member(tb, f"redis://{login}127.0.0.1:{server.port}/0", tmp_path / "pod-1", [pol])


def test_the_documented_user_is_enough(tb, server, tmp_path):
    member = member_of(tb, server, add_user(server), tmp_path)
    try:
        is_enough(server, member)
    finally:
        member.stop()


def test_one_with_less_is_seen_to_be_denied(tb, server, tmp_path):
    login = add_user(server)
    server.client().execute_command("ACL SETUSER tokenbudget -evalsha")
    member = member_of(tb, server, login, tmp_path)
    try:
        until(lambda: denied(server))
        assert not member.book().answered
    finally:
        member.stop()
