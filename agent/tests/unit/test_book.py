"""One book: the give-back rules, the lease by two clocks, debt."""

import math

import pytest


@pytest.fixture
def book(tb, clock, give):
    made = tb.Book("gpt", "tokens", 60000, 10000, lease=30.0, started=clock.boot())
    assert made.allowed(clock.boot(), clock.wall()) == 0, "never answered: admits nothing"
    give(made, 20000)
    return made


def spend(book, amount, now):
    book.ring.stamp(book.ring.charge(amount), now)


def test_the_first_call_wants_the_safe_share_but_for_what_keeps_the_pool_full(tb, clock):
    book = tb.Book("gpt", "tokens", 60000, 10000, 30.0, clock.boot())
    sent = book.prepare(True, 0, 0, clock.boot(), clock.wall())
    assert sent.args() == [0, 8000, 0, 0, 0, 10000], "and says what it will come to without an answer"


def test_never_answered_admits_the_safe_share_after_a_lease_and_a_window(tb, clock):
    book = tb.Book("gpt", "tokens", 60000, 10000, 30.0, clock.boot())
    clock.now += 50
    book.quiet = clock.boot()  # a call may have reached the ledger
    clock.now += 94.9
    assert book.allowed(clock.boot(), clock.wall()) == 0
    clock.now += 0.2
    assert book.allowed(clock.boot(), clock.wall()) == 10000
    sent = book.prepare(True, 0, 0, clock.boot(), clock.wall())
    assert (sent.keep, sent.off) == (10000, 10000)


def test_idle_and_no_pressure_moves_a_third_of_the_way_to_the_share(book, clock, give):
    give(book, 9000, share=18000)
    sent = book.prepare(True, 0, 0, clock.boot(), clock.wall())
    assert (sent.keep, sent.want) == (9000, 12000)


def test_an_idle_member_gives_a_third_back_each_beat_and_all_of_it_under_pressure(book, clock, give):
    give(book, 9000, share=9000, pool=60000 * 0.16)
    sent = book.prepare(True, 0, 0, clock.boot(), clock.wall())
    assert (sent.keep, sent.want) == (8250, 8250), "a third of the way to three quarters of the share"
    give(book, 9000, share=9000, pool=0)
    sent = book.prepare(True, 0, 0, clock.boot(), clock.wall())
    assert (sent.keep, sent.want) == (0, 0)
    assert book.grant == 0, "the grant shrinks before the call is sent"


def test_under_pressure_it_keeps_what_it_spent_and_a_moment_of_its_rate(book, clock, give):
    spend(book, 6000, clock.boot())
    give(book, 6500, share=9000, pool=0)
    sent = book.prepare(True, 0, 0, clock.boot(), clock.wall())
    assert (sent.keep, sent.want, sent.spent) == (6005, 6005, 6000)


def test_a_draw_wants_what_is_missing_and_keeps_the_rest(book, clock):
    spend(book, 19900, clock.boot())
    sent = book.prepare(False, 500, 500, clock.boot(), clock.wall())
    assert (sent.keep, sent.want, sent.least) == (20000, 20400, 20400)


def test_rule_4_what_leaves_the_window_goes_down_to_the_share(book, clock, give):
    spend(book, 5000, clock.boot())
    clock.now += 10
    spend(book, 14000, clock.boot())
    clock.now += 49
    give(book, 20000, share=16000, pool=0)
    clock.now += 3
    book.advance(clock.boot(), clock.wall())
    assert book.grant == 16000
    give(book, 16000, share=15000, pool=60000)
    clock.now += 10
    book.advance(clock.boot(), clock.wall())
    assert book.grant == 16000, "not without pressure"


def test_rule_4_counts_what_left_while_a_call_was_under_way(book, clock, give):
    spend(book, 5000, clock.boot())
    clock.now += 59
    give(book, 20000, share=10000, pool=0)
    clock.now += 1.9
    sent = book.prepare(False, 0, 0, clock.boot(), clock.wall())
    clock.now += 0.2
    book.advance(clock.boot(), clock.wall())
    book.apply(sent, ["ok", 20000, 10000, 0, 60000, 10000])
    assert book.grant == 15000


def test_nothing_is_given_up_while_nobody_can_take_it(book, clock, give):
    spend(book, 5000, clock.boot())
    clock.now += 50
    give(book, 20000, share=10000, pool=0)
    clock.now += 11
    assert not book.pressed(clock.boot()), "the ledger has not answered for 11 s"
    book.advance(clock.boot(), clock.wall())
    assert book.grant == 20000
    assert book.give_back_at(clock.boot()) is None


def test_a_ledger_that_did_not_answer_is_given_nothing_more(book, clock, give):
    spend(book, 6000, clock.boot())
    clock.now += 60
    give(book, 9000, share=3000, pool=0)
    unheard = book.prepare(True, 0, 0, clock.boot(), clock.wall())
    assert (unheard.keep, unheard.spent) == (6000, 6000)
    clock.now += 2
    sent = book.prepare(True, 0, 0, clock.boot(), clock.wall())
    assert (sent.keep, sent.want, sent.spent, book.grant) == (6000, 6000, 0, 6000)
    assert book.give_back_at(clock.boot()) is None
    give(book, 6000, share=3000, pool=0)
    sent = book.prepare(True, 0, 0, clock.boot(), clock.wall())
    assert (sent.keep, book.grant) == (0, 0), "it answers again"


def test_a_beat_is_worth_sending_when_a_5000th_of_the_budget_leaves(book, clock, give):
    start = clock.boot()
    spend(book, 7, start)
    spend(book, 5, start + 1)
    spend(book, 900, start + 2)
    clock.now += 59
    give(book, 20000, share=10000, pool=60000)
    assert book.give_back_at(clock.boot()) is None, "no pressure"
    give(book, 20000, share=10000, pool=0)
    assert book.give_back_at(clock.boot()) == pytest.approx(start + 1 + 60 + 0.1 + book.ring.guard, abs=0.11)


def steps(tb, amounts):
    """What leaves in each step, from {step: amount}."""
    return [amounts.get(step, 0) for step in range(tb.LEAVE_STEPS)]


def test_the_final_call_says_when_what_it_spent_leaves(tb, book, clock):
    spend(book, 100, clock.boot())
    clock.now += 20
    spend(book, 7.5, clock.boot())
    clock.now += 35.4
    spend(book, 3, clock.boot())
    book.ring.charge(9)
    sent = book.prepare(True, 0, 0, clock.boot(), clock.wall(), final=True)
    assert sent.spent == 120
    assert list(sent.leaves) == steps(tb, {5: 100, 25: 7}), "the rest stays for a whole window"


def test_a_call_says_when_what_is_settled_leaves_as_of_a_second_ago_at_most(tb, book, clock, give):
    give(book, 20000, share=20000, pool=0)

    def call():
        sent = book.prepare(True, 0, 0, clock.boot(), clock.wall())
        return [int(amount) for amount in sent.leaving().split()[1:]], sent.as_of_ms

    def seconds():
        return math.floor(clock.wall() * 1000)

    spend(book, 100, clock.boot())
    settled = book.ring.charge(50)
    book.ring.stamp(settled, clock.boot())
    first = call()
    clock.now += 0.5
    book.ring.settle(settled, 30, clock.boot())
    assert call() == first, "it is looked up once a second"
    clock.now += 0.5
    assert call() == (steps(tb, {}), seconds()), "it stays for a bit more than a window"
    clock.now += 20
    assert call() == (steps(tb, {40: 30}), seconds()), "what runs on may be sent again, or cost less"


def test_contended_admits_only_up_to_the_smaller_of_grant_and_share(book, clock, give):
    give(book, 20000, share=12000, pool=-500, state="contended")
    assert book.allowed(clock.boot(), clock.wall()) == 12000


@pytest.mark.parametrize("which", ["boot", "wall"])
def test_the_lease_ends_by_either_clock_and_then_off_holds(book, clock, which):
    book.apply(
        book.prepare(True, 0, 0, clock.boot(), clock.wall()), ["ok", 20000, 20000, 40000, 60000, 10000]
    )
    assert book.off == 10000
    if which == "boot":
        clock.now += 30
        clock.step -= 30
    else:
        clock.step += 30
    assert book.fits(10000, clock.boot(), clock.wall())
    assert not book.fits(10001, clock.boot(), clock.wall())
    clock.step = 0.0
    assert book.grant == 10000, "what is over is over"


def test_off_is_lowered_when_sent_and_raised_only_by_an_answer(book, clock):
    def beat():
        return book.prepare(True, 0, 0, clock.boot(), clock.wall())

    book.apply(beat(), ["ok", 20000, 20000, 40000, 60000, 10000])
    book.grant = 3000
    sent = beat()
    assert (sent.off, book.off) == (3000, 3000)
    book.apply(sent, ["ok", 20000, 20000, 40000, 60000, 10000])
    assert book.off == 3000
    book.apply(beat(), ["ok", 20000, 20000, 40000, 60000, 4000])
    assert book.off == 4000


@pytest.mark.parametrize("state", ["stale", "none"])
def test_an_answer_that_is_none_renews_nothing(book, clock, state):
    clock.now += 20
    sent = book.prepare(True, 0, 0, clock.boot(), clock.wall())
    assert not book.apply(sent, [state, 50000, 1, 1, 1, 1])
    assert book.grant <= 20000
    clock.now += 10
    assert book.allowed(clock.boot(), clock.wall()) <= book.off


def test_debt_is_declared_and_closes_the_book(book, clock, give):
    charge = book.ring.charge(20000)
    book.ring.stamp(charge, clock.boot())
    book.ring.settle(charge, 25000, clock.boot())
    sent = book.prepare(True, 0, 0, clock.boot(), clock.wall())
    assert (sent.keep, sent.spent) == (25000, 25000)
    assert not book.fits(1, clock.boot(), clock.wall())


def test_retry_after_is_when_enough_leaves_the_window(book, clock, give):
    spend(book, 20000, clock.boot())
    clock.now += 50
    assert 11 <= book.retry_after(100, clock.boot(), clock.wall()) <= 12, "the lease is over: off fits then"
    give(book, 20000, share=20000)
    assert 10 <= book.retry_after(100, clock.boot(), clock.wall()) <= 12


def test_after_the_final_call_nothing_is_admitted(book, clock):
    spend(book, 300, clock.boot())
    sent = book.prepare(True, 0, 0, clock.boot(), clock.wall(), final=True)
    assert (sent.keep, sent.want, sent.spent) == (300, 0, 300)
    assert book.allowed(clock.boot(), clock.wall()) == 0


def test_denied_counts_a_request_once_and_for_a_minute(tb):
    denied = tb.Denied()
    denied.add("a", 100, 0.0)
    denied.add("a", 100, 1.0)
    denied.add("b", 50, 30.0)
    assert denied.total == 150
    denied.advance(60.0)
    assert denied.total == 50
    denied.forget("b")
    denied.advance(100.0)
    assert denied.total == 0


def test_no_amount_of_a_call_is_one_that_the_ledger_refuses(tb):
    sent = tb.Sent(10**13, 10**18, 5, -3, 10**20, 7, 1000, (10**17, 2), 0.0, 0.0)
    assert sent.args() == [10**12, 10**12, 5, 0, 10**12, 7]
    assert sent.leaving() == "1000 1000000000000 2"
