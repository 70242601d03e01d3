"""A member below its share goes on claiming what it refused a moment ago."""


def book(tb, share, grant, spent):
    """A book under full pressure that holds a grant and has charged some of it."""
    made = tb.Book("gpt", "tokens", 60000, 10000, 30.0, 0.0)
    made.apply(made.prepare(False, 0, 0, 0.0, 0.0), ["ok", grant, share, 0, 60000, 10000])
    made.ring.charge(spent)
    return made


def test_a_beat_claims_what_was_refused_for_two_seconds(tb):
    made = book(tb, share=12000, grant=1000, spent=1000)
    quiet = made.prepare(True, 0, 0, 10.0, 10.0).want
    made.denied.add("call", 650, 11.0)
    assert quiet < 1650
    assert made.prepare(True, 0, 0, 12.5, 12.5).want == 1650, "what it spent and what it refused"
    assert made.prepare(True, 0, 0, 13.5, 13.5).want == quiet


def test_a_claim_ends_at_the_share(tb):
    made = book(tb, share=1200, grant=1000, spent=1000)
    made.denied.add("call", 650, 11.0)
    assert made.prepare(True, 0, 0, 11.5, 11.5).want == 1200


def test_a_member_above_its_share_claims_nothing(tb):
    made = book(tb, share=500, grant=1000, spent=1000)
    before = made.prepare(True, 0, 0, 10.0, 10.0).want
    made.denied.add("call", 650, 11.0)
    assert made.prepare(True, 0, 0, 11.5, 11.5).want == before
