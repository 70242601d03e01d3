"""The thread in a real Redis Cluster, whose nodes send it on."""

import os
import signal

import pytest
from support.fake_operator import Operator, limit, policy
from support.member import Member, until
from support.redis_server import RedisServer


def slot_of(node, uid):
    return node.client().execute_command("CLUSTER KEYSLOT", "{%s}" % uid)


def node_id(node):
    found = node.client().execute_command("CLUSTER MYID")
    return found if isinstance(found, str) else found.decode()


def whole(client):
    """Whether the node knows who has each slot."""
    info = client.execute_command("CLUSTER", "INFO")
    text = info if isinstance(info, str) else "".join("%s:%s\n" % pair for pair in info.items())
    return "cluster_state:ok" in text and "cluster_slots_ok:16384" in text


@pytest.fixture
def cluster(tmp_path):
    """Two nodes: the slot of uid-1 and one more are the second one's, all others the first one's."""
    nodes = [RedisServer(tmp_path).start_as_node() for _ in range(2)]
    first, second = [node.client() for node in nodes]
    slot = slot_of(nodes[0], "uid-1")
    first.execute_command(
        "CLUSTER", "ADDSLOTS", *[other for other in range(16384) if other not in (slot, slot ^ 1)]
    )
    second.execute_command("CLUSTER", "ADDSLOTS", slot, slot ^ 1)  # without any it would become a replica
    first.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1].port)

    until(lambda: whole(first) and whole(second), 15)
    yield nodes
    for node in nodes:
        node.stop()


def test_in_a_cluster_each_token_budget_is_called_where_it_is(tb, cluster, tmp_path):
    policies = [policy([limit()], uid=uid, beatMs=100) for uid in ("uid-1", "uid-0")]
    for node, pol in zip(reversed(cluster), policies):
        Operator(node.client()).publish(pol)
    member = Member(tb, cluster[0].url, tmp_path / "pod-1", policies)
    try:
        until(lambda: all(member.book(uid).answered for uid in ("uid-1", "uid-0")))
        assert member.ledger.nodes == {"uid-1": ("127.0.0.1", cluster[1].port)}
        assert len(member.ledger.clients) == 2
        moved = cluster[0].client().info("commandstats")["cmdstat_evalsha"]
        before = member.book().boot
        until(lambda: member.book().boot > before + 0.5)
        later = cluster[0].client().info("commandstats")["cmdstat_evalsha"]
        assert later.get("rejected_calls", 0) == moved.get("rejected_calls", 0), "it remembers the node"
    finally:
        member.stop()


@pytest.fixture
def one(tb, cluster, tmp_path):
    """A member of uid-1, whose slot is on the second node; the URL names the first."""
    pol = policy([limit()], beatMs=100)
    Operator(cluster[1].client()).publish(pol)
    member = Member(tb, cluster[0].url, tmp_path / "pod-1", [pol])
    until(lambda: member.book().answered and member.book().grant == 20000)
    yield member
    member.stop()


def test_a_slot_that_moves_is_followed(cluster, one):
    """All at once, as seen from the agent: what is between is in tests/ledger_cluster.rs."""
    first, second = (node.client() for node in cluster)
    slot, target, source = slot_of(cluster[0], "uid-1"), node_id(cluster[0]), node_id(cluster[1])
    with one.ledger.calls:
        first.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source)
        second.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target)
        keys = second.execute_command("CLUSTER GETKEYSINSLOT", slot, 100)
        second.execute_command("MIGRATE", "127.0.0.1", cluster[0].port, "", 0, 5000, "KEYS", *keys)
        for client in (first, second):
            client.execute_command("CLUSTER SETSLOT", slot, "NODE", target)
    until(lambda: one.book().state == "learning")
    assert (one.book().grant, one.ledger.down) == (20000, False)
    assert one.ledger.nodes == {"uid-1": ("127.0.0.1", cluster[0].port)}


def test_a_replica_that_takes_over_is_found(cluster, one, tmp_path):
    """By the node that the URL names, which hears of it."""
    (tmp_path / "replica").mkdir()
    replica = RedisServer(tmp_path / "replica").start_as_node()
    try:
        copy = replica.client()
        copy.execute_command("CLUSTER MEET", "127.0.0.1", cluster[0].port)
        until(lambda: whole(copy), 15)
        copy.execute_command("CLUSTER REPLICATE", node_id(cluster[1]))
        until(lambda: copy.info("replication").get("master_link_status") == "up", 15)
        until(lambda: one.book().state == "learning")  # as a first replica came
        cluster[1].stop()
        until(lambda: one.ledger.down)
        copy.execute_command("CLUSTER FAILOVER", "TAKEOVER")
        until(lambda: not one.ledger.down, 8)
        assert one.ledger.nodes == {"uid-1": ("127.0.0.1", replica.port)}
        assert one.book().grant == 20000
    finally:
        replica.stop()


def test_without_the_node_of_the_url_the_others_tell(cluster, one):
    cluster[0].stop()
    boot = one.book().boot
    until(lambda: one.book().boot > boot + 0.5)
    assert not one.ledger.down, "what was found goes on"
    for _ in range(2):
        os.kill(cluster[1].process.pid, signal.SIGSTOP)
        until(lambda: one.ledger.down)
        os.kill(cluster[1].process.pid, signal.SIGCONT)
        until(lambda: not one.ledger.down)


def test_a_node_that_is_gone_costs_those_on_another_one_nothing(tb, cluster, tmp_path, caplog):
    policies = [policy([limit()], uid=uid, beatMs=100) for uid in ("uid-1", "uid-0")]
    for node, pol in zip(reversed(cluster), policies):
        node.client().config_set("cluster-require-full-coverage", "no")
        Operator(node.client()).publish(pol)
    member = Member(tb, cluster[0].url, tmp_path / "pod-1", policies)
    try:
        until(lambda: all(member.book(uid).answered for uid in ("uid-1", "uid-0")))
        lost, other = (member.agent.governors[uid] for uid in ("uid-1", "uid-0"))
        client = member.ledger.clients[None]
        cluster[1].stop()
        until(lambda: lost.backoff >= 1.6, 10)
        assert (other.down, other.backoff) == (False, 0.0)
        assert member.ledger.clients == {None: client}
        boot = member.book("uid-0").boot
        until(lambda: member.book("uid-0").boot > boot + 0.5, 1.5)
        assert sum("does not answer" in r.message for r in caplog.records) == 1
        assert not any("answers again" in r.message for r in caplog.records)
    finally:
        member.stop()
