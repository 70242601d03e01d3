"""The ring: what is in the window, and that nothing ever inflates another minute."""

import random

import pytest


def test_a_charge_stays_until_60_s_slot_and_guard_after_its_stamp(tb):
    ring = tb.Ring(guard=0.6)
    charge = ring.charge(100)
    ring.advance(5000)
    assert ring.spent == 100, "what was not sent yet never leaves"
    ring.stamp(charge, 5000.0)
    ring.advance(5000.0 + tb.SLOT + 60 + 0.6 - 0.01)
    assert ring.spent == 100
    assert ring.advance(5000.0 + tb.SLOT + 60 + 0.6 + 1e-6) == 100
    assert ring.spent == 0


def test_settling_down_in_the_window_frees_and_after_it_does_nothing(tb):
    ring = tb.Ring()
    early, late = ring.charge(100), ring.charge(100)
    ring.stamp(early, 0.0)
    ring.stamp(late, 0.0)
    ring.settle(early, 40, 10.0)
    assert ring.spent == 140
    ring.advance(70.0)
    ring.settle(late, 10, 70.0)
    assert ring.spent == 0, "a late refund must not open another minute"


def test_settling_up_counts_at_once_also_after_the_window(tb):
    ring = tb.Ring()
    early, late = ring.charge(10), ring.charge(10)
    ring.stamp(early, 0.0)
    ring.stamp(late, 0.0)
    ring.settle(early, 30, 1.0)
    assert ring.spent == 40
    ring.advance(70.0)
    ring.settle(late, 25, 70.0)
    assert ring.spent == 15


def test_settling_twice_and_giving_back_after_settling_change_nothing(tb):
    ring = tb.Ring()
    charge = ring.charge(100)
    ring.stamp(charge, 0.0)
    ring.settle(charge, 50, 1.0)
    ring.settle(charge, 0, 1.0)
    ring.give_back(charge)
    assert ring.spent == 50


def test_what_never_left_is_given_back_from_wherever_it_is(tb):
    ring = tb.Ring()
    unsent, sent = ring.charge(10), ring.charge(20)
    ring.stamp(sent, 0.0)
    ring.give_back(unsent)
    assert ring.spent == 20
    ring.give_back(sent)
    assert ring.spent == 0


def test_a_second_stamp_moves_the_charge_later(tb):
    ring = tb.Ring()
    charge = ring.charge(10)
    ring.stamp(charge, 0.0)
    ring.stamp(charge, 30.0)
    ring.advance(80.0)
    assert ring.spent == 10
    ring.advance(95.0)
    assert ring.spent == 0


def test_what_was_stamped_just_before_or_in_a_stall_counts_from_its_end(tb):
    ring = tb.Ring(guard=0.0)
    before, within = ring.charge(5), ring.charge(7)
    ring.stamp(before, 10.0)
    ring.stamp(within, 20.0)
    ring.stall(19.9, 22.0)
    ring.advance(81.9)
    assert ring.spent == 7
    ring.settle(within, 3, 81.9)
    assert ring.spent == 3, "a charge that was moved can still be settled"
    ring.advance(82.5)
    assert ring.spent == 0


def test_slow_turns_hold_a_charge_back_until_it_must_have_left(tb):
    """A process that is never quick again still forgets: an attempt leaves after so many turns."""
    ring = tb.Ring(guard=0.0)
    ring.stamp(ring.charge(5), 10.0)
    for turn in range(1, 100):
        now = 10.0 + 0.2 * turn
        ring.stall(now - 0.2 - tb.MARGIN, now)
        ring.stamp(ring.charge(1), now)
    until = 10.0 + 0.2 * tb.TURNS
    ring.advance(until + 60 - 0.01)
    assert ring.spent == 5 + 99
    ring.advance(until + 60.1)
    assert ring.spent == 99
    ring.advance(until + 70.1)
    assert ring.spent == 49, "what came later is not held by it"


def test_admissions_in_one_slow_turn_are_no_turns(tb):
    ring = tb.Ring(guard=0.0)
    ring.stamp(ring.charge(5), 10.0)
    for at in range(2 * tb.TURNS):
        ring.stall(9.9, 10.2 + 0.01 * at, turn=False)
    ring.stall(9.9, 12.0)
    ring.advance(71.9)
    assert ring.spent == 5


def test_room_at_says_when_enough_has_left(tb):
    ring = tb.Ring(guard=0.0)
    for at, amount in ((0.0, 40), (10.0, 40)):
        ring.stamp(ring.charge(amount), at)
    assert ring.room_at(30, 100) == pytest.approx(60 + tb.SLOT)
    assert ring.room_at(70, 100) == pytest.approx(70 + tb.SLOT)
    assert ring.room_at(101, 100) is None


@pytest.mark.parametrize("seed", range(8))
def test_random_histories(tb, seed):
    """Sums stay right, nothing is negative, and the ring never forgets what a provider can still count."""
    rng, ring, now = random.Random(seed), tb.Ring(), 100.0
    open_, sent = [], []  # (charge, sent at)
    for _ in range(1500):
        now += rng.choice((0.0, 0.01, 0.1, 0.7, 3.0))
        ring.advance(now)
        what = rng.random()
        if what < 0.4:
            open_.append(ring.charge(rng.randint(0, 500)))
        elif what < 0.7 and open_:
            charge = open_.pop(rng.randrange(len(open_)))
            ring.stamp(charge, now)
            sent.append([charge, now])
        elif what < 0.85 and sent:
            ring.settle(rng.choice(sent)[0], rng.randint(0, 800), now)
        elif what < 0.9 and open_:
            ring.give_back(open_.pop(rng.randrange(len(open_))))
        elif what < 0.93:
            start = now - rng.random()
            ring.stall(start, now)
            for row in sent:
                row[1] = now if row[1] >= start else row[1]
        assert ring.unsent == pytest.approx(sum(c.amount for c in open_))
        assert ring.sent == pytest.approx(sum(s.amount for s in ring.slots), abs=1e-6)
        assert all(s.amount >= -1e-6 for s in ring.slots)
        assert [s.index for s in ring.slots] == sorted(s.index for s in ring.slots)
        live = sum(c.amount for c, at in sent if now - at < 60)
        assert ring.sent >= live - 1e-6
