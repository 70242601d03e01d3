//! What members make of a demand that goes over to them.

use tokio::time::Instant;

/// What those that have become busy made of it.
#[derive(Clone, Debug, Default)]
pub struct Shifted {
    /// They made a request.
    wanted: usize,
    /// Seconds from a member's first request to the first that was admitted.
    took_s: Vec<f64>,
    /// Requests, and those that were admitted.
    offered: u64,
    admitted: u64,
}

impl Shifted {
    /// Within how many seconds so many of the members (0 to 1) had a request admitted; `None`: some never had.
    #[must_use]
    pub fn served_s(&self, part: f64) -> Option<f64> {
        let mut took_s = self.took_s.clone();
        took_s.resize(self.wanted.max(took_s.len()), f64::INFINITY);
        quantile(&mut took_s, part).filter(|seconds| seconds.is_finite())
    }

    /// Which part of their requests was admitted (0 to 1); `None` when there was none.
    #[must_use]
    pub fn admitted_part(&self) -> Option<f64> {
        (self.offered > 0).then(|| self.admitted as f64 / self.offered as f64)
    }

    /// A member that is busy makes a request.
    pub fn offered(&mut self, shift: &mut Shift) {
        self.offered += 1;
        if shift.wanted.is_none() {
            shift.wanted = Some(Instant::now());
            self.wanted += 1;
        }
    }

    /// A request of this member is admitted; one that it made before it was busy does not count.
    pub fn admitted(&mut self, shift: &mut Shift) {
        let Some(wanted) = shift.wanted else { return };
        self.admitted += 1;
        if !std::mem::replace(&mut shift.served, true) {
            self.took_s.push(wanted.elapsed().as_secs_f64());
        }
    }
}

/// What a member has made of a shift that made it busy.
#[derive(Default)]
pub struct Shift {
    /// Its first request.
    wanted: Option<Instant>,
    /// One was admitted.
    served: bool,
}

/// One of the values: so many of them (0 to 1) are no larger. `None` when there is none.
pub fn quantile(values: &mut [f64], part: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * part).ceil() as usize;
    values.get(place.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_are_never_served_count() {
        let mut shifted = Shifted { wanted: 2, took_s: vec![0.4, 0.1], offered: 8, admitted: 6 };
        assert_eq!((shifted.served_s(0.99), shifted.admitted_part()), (Some(0.4), Some(0.75)));
        shifted.wanted = 3;
        assert_eq!((shifted.served_s(0.99), shifted.served_s(0.5)), (None, Some(0.4)));
        assert_eq!((Shifted::default().served_s(0.99), Shifted::default().admitted_part()), (None, None));
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        assert_eq!(quantile(&mut [3.0, 1.0, 2.0], 0.99), Some(3.0));
        assert_eq!(quantile(&mut [3.0, 1.0, 2.0], 0.5), Some(2.0));
        assert_eq!(quantile(&mut [], 0.5), None);
    }
}
