//! `tokenbudget top`: reads the TokenBudgets again and again, and draws them in place.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::cluster::{Cluster, ClusterError, ClusterOptions, duration};
use super::screen::render;
use crate::api::{ConditionKind, LimitStatus, Mode, PodStatus, TokenBudget};
use crate::output::Format;

const EXAMPLES: &str = "\
The figures are the status of the TokenBudgets, at most 15 s old. The whole bar of a limit is its
budget; the bars of its pods have one scale, that of the largest share, grant or spent.

Examples:
  # Every TokenBudget of the context's namespace, redrawn every 2 s; Ctrl-C ends it
  kubectl tokenbudget top

  # One of them, once, as plain text
  kubectl tokenbudget top gpt-4o -n llm --once

  # Which pods of the whole cluster are not enforcing?
  kubectl tokenbudget top -A -o json | jq '.items[].pods[] | select(.state != \"Enforcing\")'";

/// Shorter intervals would only read the same status again.
const LEAST_INTERVAL: Duration = Duration::from_millis(500);

/// Options of `top`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Top {
    /// One TokenBudget. Left out: all of the namespace.
    #[arg(conflicts_with = "all_namespaces")]
    pub name: Option<String>,

    /// The namespace. Left out: the context's.
    #[arg(short, long, conflicts_with = "all_namespaces")]
    pub namespace: Option<String>,

    /// The TokenBudgets of all namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,

    /// `json` prints once.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,

    /// Print once, and end.
    #[arg(long)]
    pub once: bool,

    /// Time between two readings.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    pub interval: Duration,

    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterOptions,
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time < LEAST_INTERVAL { Err("at least 500ms: the status changes no faster".to_owned()) } else { Ok(time) }
}

impl Top {
    /// Draws until Ctrl-C, or once.
    ///
    /// # Errors
    /// When the first reading fails, or nothing can be written. A later reading that fails is said above the last
    /// picture, and tried again.
    pub async fn run(&self) -> anyhow::Result<()> {
        let cluster = Cluster::find(&self.cluster).await?;
        // The first answer decides whether there is anything to watch.
        let first = self.read(&cluster).await?;
        let mut out = std::io::stdout();
        if self.output == Format::Json {
            out.write_all((json(&first)? + "\n").as_bytes())?;
            return Ok(());
        }
        let terminal = out.is_terminal();
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if self.once {
            out.write_all(self.picture(&cluster, &first, columns(), colours).as_bytes())?;
            return Ok(());
        }
        let mut terminate = signal(SignalKind::terminate())?;
        // Dropped, and so the terminal put right, however this ends.
        let screen = if terminal { Some(Screen::open()?) } else { None };
        tokio::select! {
            ended = self.watch(&cluster, first, screen.as_ref(), colours) => ended,
            _ = tokio::signal::ctrl_c() => Ok(()),
            _ = terminate.recv() => Ok(()),
        }
    }

    async fn watch(
        &self,
        cluster: &Cluster,
        first: Vec<TokenBudget>,
        screen: Option<&Screen>,
        colours: bool,
    ) -> anyhow::Result<()> {
        let (mut shown, mut read_at, mut trouble) = (first, Instant::now(), None);
        loop {
            let picture = self.picture(cluster, &shown, columns(), colours);
            let text = heading(trouble.as_ref(), read_at.elapsed()) + &picture;
            match screen {
                Some(screen) => screen.draw(&text)?,
                None => writeln!(std::io::stdout(), "{text}")?,
            }
            tokio::time::sleep(self.interval).await;
            match self.read(cluster).await {
                Ok(budgets) => (shown, read_at, trouble) = (budgets, Instant::now(), None),
                Err(error) => trouble = Some(error),
            }
        }
    }

    async fn read(&self, cluster: &Cluster) -> Result<Vec<TokenBudget>, ClusterError> {
        let namespace = self.namespace.as_deref().unwrap_or(&cluster.namespace);
        match &self.name {
            Some(name) => Ok(vec![cluster.budget(namespace, name).await?]),
            None => cluster.budgets(Some(namespace).filter(|_| !self.all_namespaces)).await,
        }
    }

    fn picture(&self, cluster: &Cluster, budgets: &[TokenBudget], width: usize, colours: bool) -> String {
        if !budgets.is_empty() {
            return render(budgets, width, colours);
        }
        if self.all_namespaces {
            return "There are no TokenBudgets in this cluster.\n".to_owned();
        }
        let namespace = self.namespace.as_deref().unwrap_or(&cluster.namespace);
        format!("There are no TokenBudgets in namespace {namespace}; -A shows those of all namespaces.\n")
    }
}

/// What is said above the picture when the last reading failed.
fn heading(trouble: Option<&ClusterError>, age: Duration) -> String {
    trouble.map_or_else(String::new, |error| format!("{error}; these figures were read {} s ago\n\n", age.as_secs()))
}

/// A TokenBudget as `-o json` shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Item<'a> {
    namespace: String,
    name: String,
    mode: Mode,
    target: Option<&'a str>,
    replicas: Option<&'a str>,
    /// `True`, `False` or `Unknown`.
    ready: Option<&'a str>,
    reason: Option<&'a str>,
    message: Option<&'a str>,
    limits: &'a [LimitStatus],
    pods: &'a [PodStatus],
}

fn json(budgets: &[TokenBudget]) -> serde_json::Result<String> {
    let item = |budget: &'_ TokenBudget| -> serde_json::Result<serde_json::Value> {
        let status = budget.status.as_ref();
        let ready =
            status.and_then(|status| status.conditions.iter().find(|c| c.type_ == ConditionKind::Ready.as_str()));
        serde_json::to_value(Item {
            namespace: budget.namespace().unwrap_or_default(),
            name: budget.name_any(),
            mode: budget.spec.mode,
            target: status.and_then(|status| status.target.as_deref()),
            replicas: status.and_then(|status| status.replicas.as_deref()),
            ready: ready.map(|ready| ready.status.as_str()),
            reason: ready.map(|ready| ready.reason.as_str()),
            message: ready.map(|ready| ready.message.as_str()),
            limits: status.map_or(&[], |status| status.limits.as_slice()),
            pods: status.map_or(&[], |status| status.pods.as_slice()),
        })
    };
    let items = budgets.iter().map(item).collect::<Result<Vec<_>, _>>()?;
    serde_json::to_string_pretty(&serde_json::json!({ "items": items }))
}

/// Columns of the terminal; what is not a terminal cuts nothing.
fn columns() -> usize {
    terminal_size::terminal_size().map_or(usize::MAX, |(width, _)| usize::from(width.0))
}

/// The terminal's other screen, without a cursor, until it is dropped.
struct Screen;

impl Screen {
    fn open() -> std::io::Result<Self> {
        std::io::stdout().write_all(b"\x1b[?1049h\x1b[?25l")?;
        Ok(Self)
    }

    fn draw(&self, text: &str) -> std::io::Result<()> {
        let rows = terminal_size::terminal_size().map_or(usize::MAX, |(_, height)| usize::from(height.0));
        let mut out = std::io::stdout();
        out.write_all(frame(text, rows).as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = std::io::stdout();
        let _ = out.write_all(b"\x1b[?25h\x1b[?1049l");
        let _ = out.flush();
    }
}

/// What puts the text in place of the one before: each line ends with the end of the old one, so that nothing flickers.
fn frame(text: &str, rows: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let (shown, more) = if all.len() <= rows { (all.len(), 0) } else { (rows.saturating_sub(1), all.len() + 1 - rows) };
    let mut lines: Vec<String> = all.iter().take(shown).map(|line| (*line).to_owned()).collect();
    if more > 0 {
        lines.push(format!("... {more} more lines: name one TokenBudget, or use --once"));
    }
    format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_replaces_the_one_before_and_fits() {
        assert_eq!(frame("a\n\nb\n", 3), "\x1b[Ha\x1b[K\n\x1b[K\nb\x1b[K\x1b[J");
        assert_eq!(
            frame("a\n\nb\n", 2),
            "\x1b[Ha\x1b[K\n... 2 more lines: name one TokenBudget, or use --once\x1b[K\x1b[J"
        );
    }

    #[test]
    fn old_figures_are_called_old() {
        assert_eq!(heading(None, Duration::from_secs(9)), "");
        let trouble = ClusterError::Deadline(Duration::from_secs(8));
        assert_eq!(
            heading(Some(&trouble), Duration::from_secs(12)),
            "the API server did not answer within 8s; these figures were read 12 s ago\n\n"
        );
    }

    #[test]
    fn intervals_are_at_least_half_a_second() {
        assert_eq!(interval("2s"), Ok(Duration::from_secs(2)));
        assert!(interval("100ms").is_err());
    }
}
