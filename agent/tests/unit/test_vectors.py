"""The core does exactly what the model in src/simulate/member does; tests/vectors.rs makes the vectors."""

import json
import pathlib

import pytest

SEQUENCES = json.loads((pathlib.Path(__file__).parent.parent / "vectors.json").read_text())


@pytest.mark.parametrize("number", range(len(SEQUENCES)))
def test_the_core_reproduces_the_model(tb, number):
    book = tb.Book("gpt", "tokens", 60000, 10000, 30.0, 1000.0)
    drift, charges, sent = tb.Drift(), [], None
    for at, step in enumerate(SEQUENCES[number]):
        boot, wall, what = step["boot"], step["wall"], step["do"]
        ring = book.ring
        if what == "charge":
            charges.append(ring.charge(step["amount"]))
        elif what == "stamp":
            ring.stamp(charges[step["charge"]], boot)
        elif what == "settle":
            ring.settle(charges[step["charge"]], step["actual"], boot)
        elif what == "giveBack":
            ring.give_back(charges[step["charge"]])
        elif what == "stall":
            ring.stall(step["since"], boot, step["turn"])
        elif what == "admitted":
            book.denied.forget(step["id"])
        elif what == "refused":
            book.denied.add(step["id"], step["amount"], boot)
        elif what == "call":
            sent = book.prepare(step["beat"], step["pending"], step["smallest"], boot, wall, step["leave"])
            book.quiet = boot
            assert sent.args() == step["asks"], (at, step)
            assert (sent.as_of_ms, list(sent.leaves)) == (step["asOfMs"], step["leaves"]), (at, step)
        elif what == "answer":
            drift.note(sent.boot, boot, step["ledger"])
            assert book.apply(sent, step["answer"]) == step["counted"], (at, step)
            ring.guard = drift.guard()
        then = {"fits": book.fits(step["need"], boot, wall)}
        then.update(spent=ring.spent, allowed=book.allowed(boot, wall), grant=book.grant, off=book.off)
        then.update(share=book.share, slack=book.slack, denied=book.denied.total)
        then.update(leaseOver=book.lease_over(boot, wall), guard=drift.guard())
        then.update(giveBackAt=book.give_back_at(boot))
        assert then == step["then"], (at, step)
