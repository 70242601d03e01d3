//! Draws the tokens of the last 60 s against the budget, as SVG.
//!
//! The budget is the heaviest line. The curve is red where nothing shares the
//! budget, blue under TokenBudget and grey between phases (red and this blue
//! stay apart for colour-blind readers). The legend stands above the plot.
//!
//! The curve looks 60 s back: leave 60 s between a phase without TokenBudget
//! and one with it, or the second inherits the first one's tokens.

mod axis;
mod compare;
mod svg;

use crate::simulate::judge::{SLOT_MS, rolling_60s};
pub use axis::thousands;
use axis::{Scale, nice_ticks};
pub use compare::{Compared, Curve, compared};
use svg::{Anchor, Svg, Text};

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 600.0;
const LEFT: f64 = 100.0;
const RIGHT: f64 = 1126.0;
const TOP: f64 = 118.0;
const BOTTOM: f64 = 536.0;

const RED: &str = "#c8102e";
const BLUE: &str = "#0072b2";
const GREY: &str = "#6b7280";
const OFFERED: &str = "#8a94a0";
const GREEN: &str = "#3f7d5a";
const INK: &str = "#1f2933";

/// A stretch of time with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// Where it starts, in Unix milliseconds.
    pub from_ms: u64,
    /// Where it ends.
    pub to_ms: u64,
    /// Its name, a few words.
    pub label: String,
    /// Whether TokenBudget is at work: the curve is blue then, else red.
    pub governed: bool,
}

/// What to draw.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// The heading.
    pub title: String,
    /// A line below it; may be empty.
    pub subtitle: String,
    /// The budget, in tokens per minute.
    pub budget_tokens: u64,
    /// Start of the first slot, in Unix milliseconds.
    pub start_ms: u64,
    /// Tokens admitted at the provider per 100 ms, by arrival.
    pub admitted: Vec<u64>,
    /// Tokens offered per 100 ms, from the same start; may be empty.
    pub offered: Vec<u64>,
    /// Shaded stretches; the curve is grey outside them, blue if there are none.
    pub phases: Vec<Phase>,
    /// Ready replicas from each moment on, in Unix milliseconds; may be empty.
    pub replicas: Vec<(u64, u32)>,
    /// Single moments to mark (a kill, a failover), in Unix milliseconds.
    pub marks: Vec<(u64, String)>,
}

/// The chart as an SVG document of 1200 x 600.
#[must_use]
pub fn svg(chart: &Chart) -> String {
    Drawing::new(chart).draw()
}

/// A chart with its scales.
struct Drawing<'a> {
    chart: &'a Chart,
    out: Svg,
    x: Scale,
    y: Scale,
    replicas: Scale,
    ticks: Vec<f64>,
    curve: Vec<u64>,
}

impl<'a> Drawing<'a> {
    fn new(chart: &'a Chart) -> Self {
        let seconds = seconds(chart.admitted.len().max(chart.offered.len()).max(1));
        let curve = rolling_60s(&chart.admitted);
        let most = curve.iter().copied().max().unwrap_or(0);
        // Room above both lines for the names of the phases.
        let top = most.max(chart.budget_tokens).max(1) as f64 * 1.22;
        let ticks = nice_ticks(top, 7);
        // Replicas keep to the lower part, below the budget line.
        let share = (0.75 * chart.budget_tokens as f64 / top).clamp(0.12, 0.33);
        let roof = share.mul_add(TOP - BOTTOM, BOTTOM);
        let pods = chart.replicas.iter().map(|(_, n)| *n).max().unwrap_or(0);
        Self {
            chart,
            out: Svg::new(WIDTH, HEIGHT),
            x: Scale::new((0.0, seconds), (LEFT, RIGHT)),
            y: Scale::new((0.0, top), (BOTTOM, TOP)),
            replicas: Scale::new((0.0, f64::from(pods.max(1))), (BOTTOM, roof)),
            ticks,
            curve,
        }
    }

    fn draw(mut self) -> String {
        self.phases();
        self.grid();
        self.offered();
        self.replicas();
        self.budget();
        self.admitted();
        self.marks();
        self.phase_labels();
        self.heading();
        self.out.finish()
    }

    /// Where a moment stands, kept within the plot.
    fn at(&self, ms: u64) -> f64 {
        let since = ms.saturating_sub(self.chart.start_ms);
        self.x.at(since as f64 / 1000.0).clamp(LEFT, RIGHT)
    }

    fn phases(&mut self) {
        for (n, phase) in self.chart.phases.iter().enumerate() {
            let (from, to) = (self.at(phase.from_ms), self.at(phase.to_ms));
            let fill = match (phase.governed, n % 2) {
                (false, 0) => "#fcecee",
                (false, _) => "#fdf4f5",
                (true, 0) => "#e6f0f8",
                (true, _) => "#f1f7fb",
            };
            self.out.rect(from, TOP, (to - from).max(0.0), BOTTOM - TOP, fill);
        }
    }

    fn grid(&mut self) {
        for tick in &self.ticks {
            let y = self.y.at(*tick);
            self.out.line((LEFT, y), (RIGHT, y), "#d9dee4", 1.0, "");
            // Ticks are whole and not negative.
            let label = thousands(*tick as u64);
            let text = Text::new(LEFT - 10.0, y + 4.5, 14.0).anchor(Anchor::End);
            self.out.text(text, &label);
        }
        let span = self.x.domain().1;
        for tick in axis::time_ticks(span) {
            let x = self.x.at(tick);
            self.out.line((x, BOTTOM), (x, BOTTOM + 6.0), GREY, 1.0, "");
            let text = Text::new(x, BOTTOM + 23.0, 14.0).anchor(Anchor::Middle);
            self.out.text(text, &axis::clock(tick, span));
        }
        self.out.line((LEFT, BOTTOM), (RIGHT, BOTTOM), GREY, 1.2, "");
        let unit = axis::clock_unit(span);
        let middle = (LEFT + RIGHT) / 2.0;
        let text = Text::new(middle, BOTTOM + 48.0, 14.0).anchor(Anchor::Middle);
        self.out.text(text, &format!("time since the start ({unit})"));
        let text = Text::new(20.0, (TOP + BOTTOM) / 2.0, 14.0).anchor(Anchor::Middle).upwards();
        self.out.text(text, "tokens admitted in the last 60 s");
    }

    fn offered(&mut self) {
        let curve = rolling_60s(&self.chart.offered);
        if curve.is_empty() {
            return;
        }
        let points = self.points(&curve, 0, curve.len());
        self.out.path(&points, OFFERED, 1.8, "2 4");
    }

    /// The colour of the curve in a slot.
    fn colour(&self, slot: usize) -> &'static str {
        let ms = self.chart.start_ms + slot as u64 * SLOT_MS;
        let mut phases = self.chart.phases.iter();
        match phases.find(|p| (p.from_ms..p.to_ms).contains(&ms)) {
            Some(phase) if !phase.governed => RED,
            None if !self.chart.phases.is_empty() => GREY,
            _ => BLUE,
        }
    }

    /// The curve, in pieces of one colour that join.
    fn admitted(&mut self) {
        let mut from = 0;
        for slot in 1..=self.curve.len() {
            if slot == self.curve.len() || self.colour(slot) != self.colour(from) {
                let points = self.points(&self.curve, from, (slot + 1).min(self.curve.len()));
                self.out.path(&points, self.colour(from), 2.4, "");
                from = slot;
            }
        }
    }

    /// The points of slots `from..to`: of those that share half a pixel only
    /// the highest and the lowest.
    fn points(&self, curve: &[u64], from: usize, to: usize) -> Vec<(f64, f64)> {
        let slots = curve.get(from..to).unwrap_or_default();
        let per = (curve.len() / 2_000).max(1);
        let mut points = Vec::new();
        for (n, group) in slots.chunks(per).enumerate() {
            let x = self.x.at(seconds(from + n * per + 1));
            let (low, high) = (group.iter().min(), group.iter().max());
            for value in [low, high].into_iter().flatten() {
                let y = self.y.at(*value as f64).max(TOP);
                if points.last() != Some(&(x, y)) {
                    points.push((x, y));
                }
            }
        }
        points
    }

    fn replicas(&mut self) {
        let mut points: Vec<(f64, f64)> = Vec::new();
        let mut last_label = f64::MIN;
        for (ms, pods) in &self.chart.replicas {
            let (x, y) = (self.at(*ms), self.replicas.at(f64::from(*pods)));
            if let Some(&(_, before)) = points.last() {
                points.push((x, before));
            }
            points.push((x, y));
            if x - last_label > 14.0 && x < RIGHT - 10.0 {
                let text = Text::new(x + 4.0, y - 6.0, 13.0).colour(GREEN).bold();
                self.out.text(text, &pods.to_string());
                last_label = x;
            }
        }
        let Some(&(_, y)) = points.last() else {
            return;
        };
        points.push((RIGHT, y));
        self.out.path(&points, GREEN, 1.8, "");
        let most = self.replicas.domain().1;
        for tick in nice_ticks(most, 3) {
            let y = self.replicas.at(tick);
            self.out.line((RIGHT, y), (RIGHT + 6.0, y), GREEN, 1.0, "");
            let text = Text::new(RIGHT + 10.0, y + 4.5, 14.0).colour(GREEN);
            self.out.text(text, &format!("{tick:.0}"));
        }
        let middle = (self.replicas.at(most) + BOTTOM) / 2.0;
        let text = Text::new(RIGHT + 44.0, middle, 14.0).anchor(Anchor::Middle).colour(GREEN).upwards();
        self.out.text(text, "ready replicas");
    }

    fn budget(&mut self) {
        let y = self.y.at(self.chart.budget_tokens as f64);
        self.out.line((LEFT, y), (RIGHT, y), INK, 4.0, "");
    }

    fn marks(&mut self) {
        for (ms, label) in &self.chart.marks {
            let x = self.at(*ms);
            self.out.line((x, TOP + 44.0), (x, BOTTOM), GREY, 1.2, "4 3");
            let left = x > RIGHT - 160.0;
            let text = Text::new(if left { x - 5.0 } else { x + 5.0 }, BOTTOM - 8.0, 13.0);
            let text = text.anchor(if left { Anchor::End } else { Anchor::Start });
            self.out.text(text.halo(), label);
        }
    }

    /// Names in the head room, in as many lines as fit their stretch.
    fn phase_labels(&mut self) {
        for phase in &self.chart.phases {
            let (from, to) = (self.at(phase.from_ms), self.at(phase.to_ms));
            if to <= from {
                continue;
            }
            let colour = if phase.governed { "#00507d" } else { "#8f0d20" };
            let lines = svg::wrap(&phase.label, to - from - 10.0, 13.5);
            for (n, line) in lines.iter().take(3).enumerate() {
                let y = TOP + 19.0 + n as f64 * 16.0;
                let text = Text::new((from + to) / 2.0, y, 13.5).anchor(Anchor::Middle);
                self.out.text(text.colour(colour).bold().halo(), line);
            }
        }
    }

    fn heading(&mut self) {
        let text = Text::new(LEFT, 38.0, 23.0).bold();
        self.out.text(text, &self.chart.title);
        let text = Text::new(LEFT, 62.0, 15.0).colour("#4b5563");
        self.out.text(text, &self.chart.subtitle);
        let budget = format!("budget {}", thousands(self.chart.budget_tokens));
        let mut entries = vec![(budget, INK, 4.0, "")];
        let phases = &self.chart.phases;
        if phases.iter().any(|p| !p.governed) {
            entries.push(("without TokenBudget".to_owned(), RED, 2.6, ""));
        }
        if phases.is_empty() || phases.iter().any(|p| p.governed) {
            entries.push(("with TokenBudget".to_owned(), BLUE, 2.6, ""));
        }
        if !self.chart.offered.is_empty() {
            entries.push(("offered (cut at the top)".to_owned(), OFFERED, 1.8, "2 4"));
        }
        if !self.chart.replicas.is_empty() {
            entries.push(("ready replicas (right)".to_owned(), GREEN, 1.8, ""));
        }
        let mut x = LEFT;
        for (name, colour, width, dash) in entries {
            self.out.line((x, 92.0), (x + 30.0, 92.0), colour, width, dash);
            self.out.text(Text::new(x + 38.0, 97.0, 14.5), &name);
            x += 38.0 + svg::text_width(&name, 14.5) + 20.0;
        }
    }
}

/// Seconds that `slots` slots last.
fn seconds(slots: usize) -> f64 {
    slots as f64 * SLOT_MS as f64 / 1000.0
}
