//! Events in the order of time, then of their making.

use std::cmp::Ordering;

use crate::ledger::BookAnswer;
use crate::simulate::process::Outgoing;

/// What can happen.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Request(usize),
    Beat(usize, u32),
    Call(usize, bool),
    Look(usize),
    CallArrives(usize, Box<Outgoing>, Option<f64>),
    Answer(usize, u64, Vec<BookAnswer>, f64),
    GiveUp(usize, u64),
    Send(usize, u64),
    Reaches(usize, Vec<(usize, f64)>),
    End(usize, u64, bool),
    Retry(usize, u64),
    Wake(usize),
    Boot(usize),
    Pass(usize),
    Fault(usize),
}

pub(super) struct Entry {
    pub(super) at: f64,
    pub(super) number: u64,
    pub(super) event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at).then(self.number.cmp(&other.number))
    }
}
