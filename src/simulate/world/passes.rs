//! What the operator sees and when it passes; what is written down each second.

use super::{Event, World};
use crate::simulate::operator::Seen;

impl World<'_> {
    fn view(&self) -> Vec<Seen> {
        let mut seen: Vec<Seen> = self.ended.clone();
        seen.extend(self.slots.iter().filter(|s| s.alive).map(|s| Seen {
            member: s.name.clone(),
            since: s.since,
            finished_ms: None,
            vanished: self.pods[s.pod].1,
        }));
        seen
    }

    pub(super) fn pass(&mut self, number: usize) {
        self.push(self.now + 1.0, Event::Pass(number));
        if number == 0 {
            let view = self.view();
            self.views.push_back((self.now, view));
            while self.views.len() > 2 && self.views[1].0 <= self.now - self.kubernetes_lag {
                self.views.pop_front();
            }
            if self.now >= self.lease_falls_at {
                self.wish.lease = self.manners.lease;
                self.lease_falls_at = f64::INFINITY;
            }
            let grants = self.slots.iter().filter(|s| s.alive).filter_map(|s| Some(s.process.books.first()?.grant));
            self.run.grants.push((self.now, grants.sum()));
            self.allow();
        }
        let away = number == 0 && self.operator_away_until > self.now;
        let over = number > 0 && self.second_until <= self.now;
        if away || over || self.server.down_until > self.now || self.server.silent_until > self.now {
            return;
        }
        let pods = self.views.front().map_or(&[][..], |(_, view)| view);
        let Some((operator, _, wish)) = self.operators.get_mut(number) else { return };
        if number == 0 {
            wish.clone_from(&self.wish);
        }
        if operator.pass(&mut self.server, wish, pods, number == 0, self.now) && number == 0 {
            // A cut is in force when the operator that leads has written it.
            if self.wish.budgets.iter().zip(&self.budgets).any(|(new, old)| new < old) {
                self.cut_at = self.now;
            }
            self.budgets.clone_from(&self.wish.budgets);
            self.allow();
        }
        // Ended members that the ledger has forgotten need no evidence any more.
        if number == 0 {
            let books = self.server.books();
            let known = |id: &str| books.iter().flatten().any(|book| book.members.contains_key(id));
            self.ended.retain(|seen| known(&seen.member));
        }
        self.breach();
    }

    /// Tells the watch what is allowed from now on.
    fn allow(&mut self) {
        let exposed = self.exposed();
        self.watch.allow(self.now, &self.budgets, &exposed);
    }

    /// What processes may still spend that have not heard the ledger since the last cut, by book: no rule can absorb that.
    fn exposed(&self) -> Vec<u64> {
        let mut exposed = vec![0; self.config.budgets.len()];
        for (who, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.alive) {
            for (book, sum) in slot.process.books.iter().zip(&mut exposed) {
                let heard =
                    book.renewed.map_or(slot.since, |at| slot.since + (at.boot - slot.boot_offset) / slot.boot_rate);
                if heard <= self.cut_at {
                    *sum += book.allowed(self.clocks(who)).max(book.ring.spent() as u64);
                }
            }
        }
        exposed
    }

    pub(super) fn breach(&mut self) {
        if self.run.breach.is_none() {
            self.run.breach = self.server.breach().map(|text| format!("at {:.1} s: {text}", self.now));
        }
    }
}
