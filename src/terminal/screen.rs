//! The picture of `top`: a pure function of what the TokenBudgets' status says.

use kube::ResourceExt;

use super::paint::{Colour, Line};
use crate::api::{ConditionKind, LimitStatus, Mode, PodStatus, TokenBudget};
use crate::plot::thousands;

/// Cells of a limit's bar: at least, and at most.
const LIMIT_BAR: (usize, usize) = (10, 50);

/// Cells of a pod's bar: at least, and at most.
const POD_BAR: (usize, usize) = (8, 30);

/// From so many percent of its budget on a limit is nearly full.
const NEARLY_FULL: i64 = 90;

/// What a pod's row says, in this order.
const COLUMNS: [&str; 6] = ["SHARE", "GRANT", "SPENT", "DENIED", "STATE", ""];

const LEGEND: &str = "# spent in the last 60 s   - granted, not spent   | share";

/// The picture, for a terminal of so many columns. Ends with a line feed.
#[must_use]
pub fn render(budgets: &[TokenBudget], width: usize, colours: bool) -> String {
    let mut lines = Vec::new();
    for budget in budgets {
        if !lines.is_empty() {
            lines.push(Line::default());
        }
        one(budget, width, &mut lines);
    }
    if budgets.iter().any(|budget| budget.status.as_ref().is_some_and(|status| !status.limits.is_empty())) {
        lines.push(Line::default());
        lines.push(line(Colour::Faint, LEGEND));
    }
    lines.iter().map(|line| line.paint(width, colours) + "\n").collect()
}

fn line(colour: Colour, text: impl AsRef<str>) -> Line {
    let mut line = Line::default();
    line.add(colour, text);
    line
}

fn one(budget: &TokenBudget, width: usize, lines: &mut Vec<Line>) {
    let mode = match budget.spec.mode {
        Mode::Enforce => "Enforce",
        Mode::Observe => "Observe",
    };
    let name = format!("{}/{}", budget.namespace().unwrap_or_default(), budget.name_any());
    let mut head = line(Colour::Bold, name);
    head.add(Colour::Plain, format!("  {mode}  "));
    let Some(status) = &budget.status else {
        head.add(Colour::Bad, "no status");
        lines.push(head);
        lines.push(line(Colour::Plain, "  The operator has not answered yet: does it run, and watch this namespace?"));
        return;
    };
    if let (Some(replicas), Some(target)) = (&status.replicas, &status.target) {
        head.add(Colour::Plain, format!("{replicas} pods of {target}  "));
    }
    let ready = status.conditions.iter().find(|c| c.type_ == ConditionKind::Ready.as_str());
    match ready {
        Some(ready) if ready.status == "True" => {
            head.add(Colour::Good, &ready.reason);
            lines.push(head);
        }
        Some(ready) => {
            head.add(Colour::Bad, &ready.reason);
            lines.push(head);
            lines.push(line(Colour::Bad, format!("  {}", ready.message)));
        }
        None => lines.push(head),
    }
    for limit in &status.limits {
        let pods: Vec<&PodStatus> =
            status.pods.iter().filter(|pod| pod.limit == limit.name && pod.unit == limit.unit).collect();
        lines.push(Line::default());
        lines.extend(limit_lines(limit, width));
        lines.extend(pod_lines(&pods, width));
        let listed: i64 = pods.iter().map(|pod| pod.workers).sum();
        if listed < limit.members {
            let more = format!(
                "  {} more processes: a status has 100 rows, the metrics have the sums",
                limit.members - listed
            );
            lines.push(line(Colour::Faint, more));
        }
    }
}

/// The limit's bar, and what stands below it.
fn limit_lines(limit: &LimitStatus, width: usize) -> [Line; 2] {
    let percent = percent(limit.spent, limit.budget);
    let colour = match percent {
        Some(percent) if percent <= NEARLY_FULL => Colour::Good,
        Some(percent) if percent <= 100 => Colour::Warn,
        _ => Colour::Bad,
    };
    let lent = limit.budget.saturating_sub(limit.pool).saturating_sub(limit.aside);
    let figures = format!(
        "  {}  {} of {} {} per minute",
        percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent} %")),
        amount(limit.spent),
        amount(limit.budget),
        limit.unit
    );
    let used = 2 + limit.name.chars().count() + 4 + figures.chars().count();
    let cells = width.saturating_sub(used).clamp(LIMIT_BAR.0, LIMIT_BAR.1);
    let mut bar = line(Colour::Plain, "  ");
    bar.add(Colour::Bold, &limit.name).add(Colour::Plain, "  [");
    bar.add(colour, cells_of(limit.spent, lent, None, limit.budget, cells)).add(Colour::Plain, "]");
    bar.add(colour, figures);

    let mut below = line(Colour::Plain, format!("  pool {}  ", amount(limit.pool)));
    let denied = if limit.denied > 0 { Colour::Warn } else { Colour::Plain };
    below.add(denied, format!("denied {}", amount(limit.denied)));
    below.add(Colour::Plain, format!("  safe share {}  members {}", amount(limit.safe_share), amount(limit.members)));
    if limit.aside > 0 {
        below.add(Colour::Warn, format!("  set aside {}", amount(limit.aside)));
    }
    if let Some(outside) = &limit.outside {
        let spent = if limit.unit == "requests" { outside.requests } else { outside.tokens };
        below.add(Colour::Bad, format!("  others spend {}", amount(spent)));
    }
    // Last, where a narrow terminal cuts it.
    if limit.pressure_percent > 0 {
        below.add(Colour::Plain, format!("  pressure {} %", limit.pressure_percent));
    }
    [bar, below]
}

/// A table of the pods; nothing when there are none.
fn pod_lines(pods: &[&PodStatus], width: usize) -> Vec<Line> {
    if pods.is_empty() {
        return Vec::new();
    }
    let rows: Vec<[String; 6]> = pods.iter().map(|pod| row(pod)).collect();
    let widest = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([COLUMNS[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; 6] = std::array::from_fn(widest);
    let name = pods.iter().map(|pod| pod.pod.chars().count()).chain([3]).max().unwrap_or(3);
    let figures: usize = widths.iter().map(|width| width + 2).sum();
    let cells = width.saturating_sub(4 + name + 4 + figures).clamp(POD_BAR.0, POD_BAR.1);
    let scale = pods.iter().flat_map(|pod| [pod.share, pod.grant, pod.spent]).max().unwrap_or(0);

    let columns = |row: [&str; 6]| -> [String; 6] {
        std::array::from_fn(|column| match column {
            4 | 5 => format!("  {:<1$}", row[column], widths[column]),
            _ => format!("  {:>1$}", row[column], widths[column]),
        })
    };
    let mut lines = vec![line(Colour::Faint, format!("    {:<name$}  {:<2$}", "POD", "", cells + 2))];
    lines[0].add(Colour::Faint, columns(COLUMNS).concat());
    for (pod, row) in pods.iter().zip(&rows) {
        let bad = match pod.state.as_str() {
            "Enforcing" | "Observing" => Colour::Good,
            "Starting" => Colour::Warn,
            _ => Colour::Bad,
        };
        let mut out = line(Colour::Plain, format!("    {:<name$}  [", pod.pod));
        out.add(bad, cells_of(pod.spent, pod.grant, Some(pod.share), scale, cells)).add(Colour::Plain, "]");
        let denied = if pod.denied > 0 { Colour::Warn } else { Colour::Plain };
        let colours = [Colour::Plain, Colour::Plain, Colour::Plain, denied, bad, Colour::Faint];
        for (colour, text) in colours.into_iter().zip(columns(row.each_ref().map(String::as_str))) {
            out.add(colour, text);
        }
        lines.push(out);
    }
    lines
}

/// A pod's figures, state, and how many processes it has when that is not one.
fn row(pod: &PodStatus) -> [String; 6] {
    let workers = if pod.workers == 1 { String::new() } else { format!("{} workers", pod.workers) };
    [amount(pod.share), amount(pod.grant), amount(pod.spent), amount(pod.denied), pod.state.clone(), workers]
}

/// `#` up to what was spent, `-` up to what was granted, `|` where the share is, blanks up to `scale`.
fn cells_of(spent: i64, granted: i64, share: Option<i64>, scale: i64, cells: usize) -> String {
    // Something is never shown as nothing, and more than the scale is a full bar.
    let place = |amount: i64| -> usize {
        let (amount, scale) = (i128::from(amount.max(0)), i128::from(scale.max(1)));
        let place = usize::try_from((amount * cells as i128 + scale / 2) / scale).unwrap_or(cells).min(cells);
        if amount > 0 { place.max(1) } else { place }
    };
    let (spent, granted) = (place(spent), place(granted));
    let mark = share.filter(|share| *share > 0).map(|share| place(share) - 1);
    let cell = |at: usize| match at {
        _ if mark == Some(at) => '|',
        _ if at < spent => '#',
        _ if at < granted => '-',
        _ => ' ',
    };
    (0..cells).map(cell).collect()
}

/// Of the budget in percent, rounded up as the status does; none of a budget of 0.
fn percent(spent: i64, budget: i64) -> Option<i64> {
    (budget > 0).then(|| spent.saturating_mul(100).saturating_add(budget - 1) / budget)
}

/// With commas between the thousands.
fn amount(amount: i64) -> String {
    let sign = if amount < 0 { "-" } else { "" };
    format!("{sign}{}", thousands(amount.unsigned_abs()))
}

#[cfg(test)]
mod tests;
