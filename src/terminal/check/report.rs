//! What a check found.

use serde::Serialize;

use crate::plot::thousands;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The API server or the operator would refuse it, or it does not do what it says.
    Problem,
    /// Worth knowing.
    Note,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// The file.
    pub file: String,
    /// The object, as `TokenBudget llm/gpt-4o`.
    pub object: String,
    /// The field; empty where it is about the object.
    pub field: String,
    /// What was found, and the way out.
    pub message: String,
}

/// The safe share of one limit in one unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SafeShare {
    /// Name of the limit.
    pub name: String,
    /// `tokens` or `requests`.
    pub unit: &'static str,
    /// What the fleet may spend in any 60 s.
    pub budget: u64,
    /// What a process may spend when it has lost the ledger; missing while the size of the fleet is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safe_share: Option<u64>,
}

/// One TokenBudget that could be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Checked {
    /// The file.
    pub file: String,
    /// The object, as `TokenBudget llm/gpt-4o`.
    pub object: String,
    /// The most processes that may run at once; missing where a Deployment is not in the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_processes: Option<u32>,
    /// How they come about, for each Deployment.
    pub fleet: Vec<String>,
    /// Empty where LiteLLM's configuration declares the limits.
    pub limits: Vec<SafeShare>,
}

/// What was found in all files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What is wrong or worth knowing.
    pub findings: Vec<Finding>,
    /// The TokenBudgets.
    pub budgets: Vec<Checked>,
}

impl Report {
    /// Whether anything is wrong.
    #[must_use]
    pub fn has_problems(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Problem)
    }

    /// For people: a line for each finding, then the safe shares, then the verdict.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for Finding { severity, file, object, field, message } in &self.findings {
            let mark = if *severity == Severity::Note { "note: " } else { "" };
            let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
            out.push_str(&format!("{file}: {object}: {mark}{field}{message}\n"));
        }
        for budget in &self.budgets {
            if !out.is_empty() {
                out.push('\n');
            }
            out.push_str(&format!("{} in {}\n", budget.object, budget.file));
            for line in &budget.fleet {
                out.push_str(&format!("  {line}\n"));
            }
            if let Some(most) = budget.most_processes {
                out.push_str(&format!("  {most} processes at most\n"));
                if budget.limits.is_empty() {
                    out.push_str(&format!("  safe share: what LiteLLM's configuration declares, divided by {most}\n"));
                }
            }
            for limit in &budget.limits {
                let safe = limit.safe_share.map(|safe| format!(", safe share {}", thousands(safe))).unwrap_or_default();
                let (name, of, unit) = (&limit.name, thousands(limit.budget), limit.unit);
                out.push_str(&format!("  limit {name}: {of} {unit} per minute{safe}\n"));
            }
        }
        let problems = self.findings.iter().filter(|finding| finding.severity == Severity::Problem).count();
        let verdict = match (problems, self.budgets.len()) {
            (0, 0) => "no TokenBudget in these files".to_owned(),
            (0, 1) => "1 TokenBudget, no problems".to_owned(),
            (0, budgets) => format!("{budgets} TokenBudgets, no problems"),
            (1, _) => "1 problem".to_owned(),
            (problems, _) => format!("{problems} problems"),
        };
        out + "\n" + &verdict + "\n"
    }
}
