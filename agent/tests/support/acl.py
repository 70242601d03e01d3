"""The Redis user of docs/operations.md."""

from pathlib import Path

from .member import until

OPERATIONS = Path(__file__).resolve().parents[3] / "docs/operations.md"


def add_user(server):
    """Adds it by the line of the page; answers with the login of its URL."""
    lines = OPERATIONS.read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("ACL SETUSER tokenbudget ")]
    server.client().execute_command(*line.replace("PASSWORD", "secret").split())
    return "tokenbudget:secret@"


def denied(server):
    """What the user was refused so far."""
    return [entry for entry in server.client().acl_log() if entry["username"] == "tokenbudget"]


def is_enough(server, member):
    """The member is lent tokens, loads its script again, and gives all back when it ends."""
    until(lambda: member.book().answered and member.book().grant == 20000)
    server.client().execute_command("SCRIPT", "FLUSH")
    before = member.book().boot
    until(lambda: member.book().boot > before + 0.5)
    member.ledger.leave()
    assert member.book().grant == 0
    assert denied(server) == []
