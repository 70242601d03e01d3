//! Several ways to share one budget over the same demand: the last 60 s against the budget above, requests refused below.

use super::axis::{self, Scale, nice_ticks, thousands};
use super::svg::{self, Anchor, Svg, Text};
use super::{BLUE, GREY, INK, RED};
use crate::simulate::judge::{Arrival, SLOT_MS, percent_up, rolling_60s, slots};

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 780.0;
const LEFT: f64 = 100.0;
const RIGHT: f64 = 1160.0;
const TOP: f64 = 150.0;
const BOTTOM: f64 = 500.0;
const LOWER_TOP: f64 = 560.0;
const LOWER_BOTTOM: f64 = 716.0;

/// Refusals are counted by so much time, in ms.
const REFUSED_MS: u64 = 10_000;

const ORANGE: &str = "#d98200";

/// One way to share.
#[derive(Clone, Debug)]
pub struct Curve<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it admitted, in the order of time, in ms from the start.
    pub admitted: &'a [Arrival],
    /// When it refused, in ms from the start.
    pub refused: &'a [u64],
    /// Its fullest 60 s, in tokens.
    pub worst60s: u64,
}

/// What to draw. The first curve is TokenBudget, and drawn last and strongest.
#[derive(Clone, Debug)]
pub struct Compared<'a> {
    /// The heading.
    pub title: String,
    /// A line below it.
    pub subtitle: String,
    /// Tokens per minute from each moment on (seconds).
    pub budgets: Vec<(f64, u64)>,
    /// How long it lasted, in ms.
    pub length_ms: u64,
    /// Up to four curves.
    pub curves: Vec<Curve<'a>>,
    /// Moments to mark, in seconds.
    pub marks: Vec<(f64, String)>,
}

/// Colour, width and dashes of a curve.
const STYLES: [(&str, f64, &str); 4] = [(BLUE, 2.6, ""), (INK, 1.4, "5 3"), (ORANGE, 1.8, ""), (RED, 1.8, "")];

/// The chart as an SVG document.
#[must_use]
pub fn compared(chart: &Compared<'_>) -> String {
    let mut out = Svg::new(WIDTH, HEIGHT);
    let seconds = chart.length_ms as f64 / 1000.0;
    let x = Scale::new((0.0, seconds.max(1.0)), (LEFT, RIGHT));
    heading(&mut out, chart);
    upper(&mut out, chart, x);
    lower(&mut out, chart, x);
    out.finish()
}

fn heading(out: &mut Svg, chart: &Compared<'_>) {
    out.text(Text::new(LEFT, 36.0, 22.0).bold(), &chart.title);
    out.text(Text::new(LEFT, 60.0, 14.5).colour("#4b5563"), &chart.subtitle);
    let budget = chart.budgets.iter().map(|(_, budget)| *budget).max().unwrap_or(0);
    let mut entries = vec![(format!("budget {}", thousands(budget)), (INK, 4.0, ""))];
    for (curve, style) in chart.curves.iter().zip(STYLES) {
        entries.push((format!("{}: worst 60 s {}", curve.name, percent_up(curve.worst60s, budget)), style));
    }
    let (mut left, mut line) = (LEFT, 88.0);
    for (name, (colour, width, dash)) in entries {
        let takes = 38.0 + svg::text_width(&name, 14.0) + 20.0;
        if left + takes > RIGHT {
            (left, line) = (LEFT, line + 24.0);
        }
        out.line((left, line), (left + 30.0, line), colour, width, dash);
        out.text(Text::new(left + 38.0, line + 5.0, 14.0), &name);
        left += takes;
    }
}

fn upper(out: &mut Svg, chart: &Compared<'_>, x: Scale) {
    let sums: Vec<Vec<u64>> =
        chart.curves.iter().map(|curve| rolling_60s(&slots(curve.admitted, 0, chart.length_ms))).collect();
    let budget = chart.budgets.iter().map(|(_, budget)| *budget).max().unwrap_or(0);
    let most = sums.iter().flatten().copied().max().unwrap_or(0).max(budget).max(1);
    let y = Scale::new((0.0, most as f64 * 1.08), (BOTTOM, TOP));
    frame(out, (TOP, BOTTOM), x, y, "tokens admitted in the last 60 s");
    for (at, label) in &chart.marks {
        let at = x.at(*at).clamp(LEFT, RIGHT);
        out.line((at, TOP), (at, LOWER_BOTTOM), GREY, 1.2, "4 3");
        let left = at > RIGHT - 170.0;
        let text = Text::new(if left { at - 5.0 } else { at + 5.0 }, BOTTOM - 8.0, 13.0);
        out.text(text.anchor(if left { Anchor::End } else { Anchor::Start }).halo(), label);
    }
    for (place, (from, budget)) in chart.budgets.iter().enumerate() {
        let to = chart.budgets.get(place + 1).map_or(x.domain().1, |next| next.0);
        let height = y.at(*budget as f64);
        out.line((x.at(*from), height), (x.at(to.min(x.domain().1)), height), INK, 4.0, "");
    }
    for (sums, (colour, width, dash)) in sums.iter().zip(STYLES).rev() {
        out.path(&thin(sums, x, y), colour, width, dash);
    }
}

/// The points of a curve: of those that share half a pixel only the highest and the lowest.
fn thin(values: &[u64], x: Scale, y: Scale) -> Vec<(f64, f64)> {
    let per = (values.len() / 2_000).max(1);
    let mut points = Vec::new();
    for (place, group) in values.chunks(per).enumerate() {
        let at = x.at((place * per + 1) as f64 * SLOT_MS as f64 / 1000.0).min(RIGHT);
        for value in [group.iter().min(), group.iter().max()].into_iter().flatten() {
            let point = (at, y.at(*value as f64));
            if points.last() != Some(&point) {
                points.push(point);
            }
        }
    }
    points
}

fn lower(out: &mut Svg, chart: &Compared<'_>, x: Scale) {
    let steps = usize::try_from(chart.length_ms.div_ceil(REFUSED_MS)).unwrap_or(0);
    let counts = |refused: &[u64]| {
        let mut counts = vec![0_u64; steps];
        for at in refused {
            if let Some(count) = usize::try_from(at / REFUSED_MS).ok().and_then(|step| counts.get_mut(step)) {
                *count += 1;
            }
        }
        counts
    };
    let all: Vec<Vec<u64>> = chart.curves.iter().map(|curve| counts(curve.refused)).collect();
    let most = all.iter().flatten().copied().max().unwrap_or(0).max(1);
    let y = Scale::new((0.0, most as f64 * 1.05), (LOWER_BOTTOM, LOWER_TOP));
    frame(out, (LOWER_TOP, LOWER_BOTTOM), x, y, "refused in 10 s");
    for (counts, (colour, width, dash)) in all.iter().zip(STYLES).rev() {
        let mut points = Vec::new();
        for (step, count) in counts.iter().enumerate() {
            let from = step as f64 * REFUSED_MS as f64 / 1000.0;
            let to = (from + REFUSED_MS as f64 / 1000.0).min(x.domain().1);
            points.push((x.at(from), y.at(*count as f64)));
            points.push((x.at(to), y.at(*count as f64)));
        }
        out.path(&points, colour, width.min(2.0), dash);
    }
}

fn frame(out: &mut Svg, (top, bottom): (f64, f64), x: Scale, y: Scale, name: &str) {
    for tick in nice_ticks(y.domain().1, if bottom - top > 200.0 { 6 } else { 3 }) {
        let height = y.at(tick);
        out.line((LEFT, height), (RIGHT, height), "#d9dee4", 1.0, "");
        out.text(Text::new(LEFT - 10.0, height + 4.5, 13.0).anchor(Anchor::End), &thousands(tick as u64));
    }
    let span = x.domain().1;
    for tick in axis::time_ticks(span) {
        let at = x.at(tick);
        out.line((at, bottom), (at, bottom + 6.0), GREY, 1.0, "");
        out.text(Text::new(at, bottom + 22.0, 13.0).anchor(Anchor::Middle), &axis::clock(tick, span));
    }
    out.line((LEFT, bottom), (RIGHT, bottom), GREY, 1.2, "");
    let text = Text::new(20.0, (top + bottom) / 2.0, 13.5).anchor(Anchor::Middle).upwards();
    out.text(text, name);
    if bottom > BOTTOM {
        let text = Text::new((LEFT + RIGHT) / 2.0, bottom + 46.0, 13.5).anchor(Anchor::Middle);
        out.text(text, &format!("time since the start ({})", axis::clock_unit(span)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_every_curve_and_says_its_worst_minute() {
        let admitted = [(0, 500), (30_000, 501)].map(|(at_ms, tokens)| Arrival { at_ms, tokens });
        let curve = |name| Curve { name, admitted: &admitted, refused: &[100, 25_000], worst60s: 1_001 };
        let chart = Compared {
            title: "a < b".to_owned(),
            subtitle: String::new(),
            budgets: vec![(0.0, 1_000), (20.0, 400)],
            length_ms: 60_000,
            curves: vec![curve("one"), curve("two")],
            marks: vec![(20.0, "cut".to_owned())],
        };
        let text = compared(&chart);
        assert!(text.contains("a &lt; b") && text.contains("two: worst 60 s 100.1%") && text.contains(">cut<"));
        // Two curves in each half.
        assert_eq!(text.matches("<polyline").count(), 4);
    }
}
