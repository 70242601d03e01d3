//! Beats, draws and answers, and what the network does to them.

use super::{Event, World};
use crate::ledger::BookAnswer;
use crate::simulate::process::{DRAW_GAP, Outgoing, TIMEOUT};

impl World<'_> {
    pub(super) fn beat(&mut self, who: usize, beat: u32) {
        let slot = &mut self.slots[who];
        if slot.beat != beat {
            return;
        }
        slot.beat += 1;
        let next = slot.beat;
        self.call(who, true);
        let after = self.slots[who].process.time_to_beat(self.clocks(who));
        self.push(self.later(who, after), Event::Beat(who, next));
    }

    /// A draw, as soon as the gap since the last call allows it.
    pub(super) fn draw(&mut self, who: usize) {
        let clocks = self.clocks(who);
        let process = &self.slots[who].process;
        let wait = process.last_call + DRAW_GAP - clocks.boot;
        if wait <= 0.0 {
            self.call(who, false);
        } else {
            self.push(self.later(who, wait), Event::Call(who, false));
        }
    }

    pub(super) fn call(&mut self, who: usize, beat: bool) {
        let clocks = self.clocks(who);
        let slot = &mut self.slots[who];
        let process = &mut slot.process;
        if process.is_calling()
            || slot.leaving
            || (!beat && (!process.wants() || clocks.boot - process.last_call < DRAW_GAP - 1e-9))
        {
            return;
        }
        // A refused connection is known before anything is sent.
        if slot.cut_until > self.now || self.server.down_until > self.now {
            return;
        }
        process.set_manners(self.manners);
        let out = process.call(beat, false, clocks);
        self.dispatch(who, out);
    }

    pub(super) fn dispatch(&mut self, who: usize, out: Outgoing) {
        self.run.calls += 1;
        if !self.config.rough {
            if self.server.silent_until > self.now {
                self.push(self.later(who, TIMEOUT), Event::GiveUp(who, out.seq));
                return;
            }
            let answers = self.server.call(&self.slots[who].process.member, &out, self.now);
            let time = self.server.time(self.now);
            if !out.leave {
                self.answer(who, out.seq, &answers, time);
            }
            return;
        }
        let seq = out.seq;
        self.push(self.later(who, TIMEOUT), Event::GiveUp(who, seq));
        let (there, back) = (self.delay(), self.delay());
        // Lost on the way, or the answer is.
        let dice = self.rng.unit();
        if dice < 0.01 {
            return;
        }
        let back = (dice >= 0.03).then_some(back);
        if self.rng.unit() < 0.01 {
            let again = there + self.delay();
            self.push(self.now + again, Event::CallArrives(who, Box::new(out.clone()), None));
        }
        self.push(self.now + there, Event::CallArrives(who, Box::new(out), back));
    }

    fn delay(&mut self) -> f64 {
        if self.rng.unit() < 0.01 { 6.0 * self.rng.unit() } else { 0.0005 }
    }

    pub(super) fn call_arrives(&mut self, who: usize, out: &Outgoing, back: Option<f64>) {
        if self.server.down_until > self.now || self.server.silent_until > self.now {
            return;
        }
        let member = self.slots[who].process.member.clone();
        let answers = self.server.call(&member, out, self.now);
        self.breach();
        if let Some(back) = back {
            let time = self.server.time(self.now);
            self.push(self.now + back, Event::Answer(who, out.seq, answers, time));
        }
    }

    pub(super) fn answer(&mut self, who: usize, seq: u64, answers: &[BookAnswer], time: f64) {
        let clocks = self.clocks(who);
        self.slots[who].process.answered(seq, answers, time, clocks);
        if !self.slots[who].process.waiting.is_empty() {
            self.recheck(who);
        }
    }
}
