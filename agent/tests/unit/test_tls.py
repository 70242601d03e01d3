"""The thread and a real redis-server with TLS, whose certificate a CA of one's own has signed."""

import pytest
from support.fake_operator import Operator, limit, policy
from support.member import Member, until
from support.redis_server import Authority, RedisServer


@pytest.fixture
def ours(tmp_path):
    return Authority(tmp_path / "ca")


@pytest.fixture
def server(tmp_path, ours, request):
    """With a certificate for an address, or for what the test says."""
    made = RedisServer(tmp_path).start_with_tls(ours, getattr(request, "param", "IP:127.0.0.1"))
    yield made
    made.stop()


def member(tb, server, tmp_path, ca):
    pol = policy([limit()], beatMs=100)
    Operator(server.client()).publish(pol)
    url = f"rediss://127.0.0.1:{server.tls_port}"
    return Member(tb, url, tmp_path / "pod-1", [pol], TOKENBUDGET_REDIS_CA=ca)


def test_our_ca_is_trusted(tb, server, ours, tmp_path):
    one = member(tb, server, tmp_path, ours.certificate.read_text())
    until(lambda: one.book().answered)
    one.stop()


@pytest.mark.parametrize("which", ["none", "another", "no certificate"])
def test_no_other_is(tb, server, tmp_path, which, caplog):
    if which == "another":
        ca = Authority(tmp_path / "other").certificate.read_text()
    else:
        ca = "" if which == "none" else "hunter2"
    one = member(tb, server, tmp_path, ca)
    until(lambda: one.ledger.down)
    assert not one.book().answered
    assert "hunter2" not in caplog.text
    if which != "no certificate":
        until(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)  # it is down before it is said
    one.stop()


@pytest.mark.parametrize("server", ["DNS:redis.example"], indirect=True)
def test_a_certificate_for_another_name_is_none(tb, server, ours, tmp_path, caplog):
    one = member(tb, server, tmp_path, ours.certificate.read_text())
    until(lambda: one.ledger.down)
    assert "IP address mismatch" in caplog.text
    one.stop()
