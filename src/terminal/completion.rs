//! `tokenbudget completion`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;

const EXAMPLES: &str = "\
Examples:
  # In this bash
  source <(tokenbudget completion bash)

  # In every zsh
  tokenbudget completion zsh > \"${fpath[1]}/_tokenbudget\"

  # In every fish
  tokenbudget completion fish > ~/.config/fish/completions/tokenbudget.fish";

/// Options of `completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Completion {
    /// The shell.
    pub shell: Shell,
}

impl Completion {
    /// The script. It completes `kubectl-tokenbudget` when that is how this program was called, else `tokenbudget`.
    #[must_use]
    pub fn script(&self, plugin: bool) -> Vec<u8> {
        let mut script = Vec::new();
        let name = if plugin { "kubectl-tokenbudget" } else { "tokenbudget" };
        clap_complete::generate(self.shell, &mut Cli::command(), name, &mut script);
        script
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_completes_the_subcommands_of_the_name_that_was_called() {
        for shell in Shell::value_variants() {
            for (plugin, name) in [(true, "kubectl-tokenbudget"), (false, "tokenbudget")] {
                let script = String::from_utf8(Completion { shell: *shell }.script(plugin)).unwrap();
                for word in [name, "top", "check", "attach"] {
                    assert!(script.contains(word), "{shell}: no {word}");
                }
                assert_eq!(script.contains("kubectl-tokenbudget"), plugin, "{shell}");
            }
        }
    }
}
