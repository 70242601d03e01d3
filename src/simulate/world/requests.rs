//! What happens to a request: it is offered, waits, leaves, reaches the provider and ends.

use super::{Event, World};
use crate::simulate::demand::Offered;
use crate::simulate::process::{RECHECK, Request, Verdict};

impl World<'_> {
    pub(super) fn request(&mut self, place: usize) {
        if let Some(next) = self.trace.get(place + 1) {
            self.push(next.at, Event::Request(place + 1));
        }
        let offered = self.trace[place];
        self.run.offered += 1;
        let Some(who) = self.pick(offered.dice) else {
            self.refuse(1);
            return;
        };
        let request = self.as_request(place as u64, &offered);
        if self.slots[who].frozen_until > self.now {
            // The client waits for its connection; it gives up in time.
            return;
        }
        let clocks = self.clocks(who);
        self.slots[who].process.ran_until(clocks);
        self.offer(who, request);
    }

    /// The first book counts tokens; the second requests; every second request spends from the third, too.
    fn as_request(&self, id: u64, offered: &Offered) -> Request {
        let mut needs = vec![(0, offered.reserve as f64)];
        let mut actual = vec![offered.tokens as f64];
        if self.config.budgets.len() > 1 {
            needs.push((1, 1.0));
            actual.push(1.0);
        }
        if self.config.budgets.len() > 2 && id.is_multiple_of(2) {
            needs.push((2, offered.reserve as f64));
            actual.push(offered.tokens as f64);
        }
        Request { id, needs, actual, latency: offered.latency }
    }

    fn offer(&mut self, who: usize, request: Request) {
        let (id, clocks) = (request.id, self.clocks(who));
        match self.slots[who].process.offer(request, clocks) {
            Verdict::Admitted => self.admitted(who, id),
            Verdict::Waits => {
                self.draw(who);
                if self.slots[who].process.waiting.len() == 1 {
                    self.push(self.later(who, RECHECK), Event::Look(who));
                }
            }
            Verdict::Refused => {
                self.refuse(1);
                self.draw(who);
            }
        }
    }

    /// From the check to the last hook, a moment passes in which a process can freeze.
    fn admitted(&mut self, who: usize, id: u64) {
        if self.config.send_delay > 0.0 {
            self.push(self.now + self.config.send_delay, Event::Send(who, id));
        } else if self.config.rough {
            let takes = 0.002 + 0.05 * self.rng.unit().powi(4);
            self.push(self.now + takes, Event::Send(who, id));
        } else {
            self.send(who, id);
        }
    }

    pub(super) fn send(&mut self, who: usize, id: u64) {
        let clocks = self.clocks(who);
        if !self.slots[who].process.before_send(id, clocks) {
            self.refuse(1);
            return;
        }
        let Some(attempt) = self.slots[who].process.attempts.get(&id) else { return };
        let amounts: Vec<(usize, f64)> =
            attempt.request.needs.iter().map(|(book, _)| *book).zip(attempt.request.actual.iter().copied()).collect();
        let latency = attempt.request.latency;
        let failing = self.slots[who].failing_until > self.now;
        if self.config.rough {
            let transit = 0.002 + 0.2 * self.rng.unit().powi(8);
            self.push(self.now + transit, Event::Reaches(who, amounts));
        } else {
            self.reaches(who, &amounts);
        }
        if failing && self.rng.unit() < 0.5 {
            self.push(self.now + 0.1, Event::Retry(who, id));
        } else {
            let known = !self.config.rough || self.rng.unit() < 0.95;
            self.push(self.now + latency, Event::End(who, id, known));
        }
    }

    pub(super) fn reaches(&mut self, who: usize, amounts: &[(usize, f64)]) {
        for &(book, amount) in amounts {
            self.watch.arrived(book, self.now, amount);
        }
        if let Some(&(0, tokens)) = amounts.first() {
            self.run.admitted.push((self.now, who, tokens as u64));
        }
        if self.run.breach.is_none() {
            self.run.breach = self.watch.breach.take();
        }
    }

    pub(super) fn end(&mut self, who: usize, id: u64, known: bool) {
        let clocks = self.clocks(who);
        self.slots[who].process.end(id, known, clocks);
        if !self.slots[who].process.waiting.is_empty() {
            self.recheck(who);
        }
    }

    pub(super) fn retry(&mut self, who: usize, id: u64) {
        self.attempts += 1;
        let again = u64::MAX - self.attempts;
        let clocks = self.clocks(who);
        if self.slots[who].process.retry(id, again, clocks) {
            self.admitted(who, again);
        }
    }

    pub(super) fn look(&mut self, who: usize) {
        self.recheck(who);
        if !self.slots[who].process.waiting.is_empty() {
            self.draw(who);
            self.push(self.later(who, RECHECK), Event::Look(who));
        }
    }

    pub(super) fn recheck(&mut self, who: usize) {
        let clocks = self.clocks(who);
        let (admitted, refused) = self.slots[who].process.recheck(clocks);
        self.refuse(refused.len());
        for id in admitted {
            self.admitted(who, id);
        }
    }
}
