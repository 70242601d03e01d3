//! The command line of the binary `provider`.

use std::net::SocketAddr;

use crate::size::Size;

use super::{Failures, Provider, Settings};

/// A model provider that speaks the OpenAI API and keeps exact books.
///
/// Point LiteLLM at it with `api_base: http://127.0.0.1:9000/v1`. It charges a
/// request at the moment it arrives with prompt plus answer tokens; both are
/// pure functions of the request, so a load generator can compute them too.
///
/// While it runs:
///   curl -X PUT localhost:9000/settings -d '{"answer":"300~1.5"}' -H content-type:application/json
///   curl 'localhost:9000/usage?model=gpt-4o&series=false'
///   curl 'localhost:9000/arrivals?from_ms=...&to_ms=...'
///   curl -X DELETE localhost:9000/usage
///
/// A SIZE is a number (always that) or `MEAN~CV`: lognormal with that mean and
/// coefficient of variation.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "provider", version, verbatim_doc_comment)]
pub struct Args {
    /// Where to listen; port 0 takes a free one and prints it
    #[arg(long, default_value = "127.0.0.1:9000", value_name = "HOST:PORT")]
    pub listen: SocketAddr,
    /// Seeds answer lengths, latencies and failures
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Answer tokens per choice; max_tokens always caps them
    #[arg(long, default_value = "50", value_name = "SIZE")]
    pub answer: Size,
    /// Milliseconds before anything is answered
    #[arg(long, default_value = "0", value_name = "SIZE")]
    pub latency_ms: Size,
    /// More milliseconds until the first token
    #[arg(long, default_value_t = 0)]
    pub first_token_ms: u64,
    /// Milliseconds for each further token, streamed or not
    #[arg(long, default_value_t = 0.0)]
    pub token_ms: f64,
    /// Tokens in one chunk of a stream
    #[arg(long, default_value_t = 10)]
    pub chunk_tokens: u64,
    /// Share of requests to refuse, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    pub fail: f64,
    /// The status to refuse them with
    #[arg(long, default_value_t = 503, value_name = "STATUS")]
    pub fail_status: u16,
    /// Retry-After of such a refusal, in seconds
    #[arg(long, value_name = "SECONDS")]
    pub fail_retry_after: Option<u64>,
    /// Share of admitted requests whose connection is dropped halfway, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    pub drop: f64,
    /// Answer 429 above this many tokens in any 60 s, as a real provider does
    /// (repeatable; off by default, so that an overrun is seen and counted)
    #[arg(long, value_name = "MODEL=TPM", value_parser = quota)]
    pub quota: Vec<(String, u64)>,
    /// Models that GET /v1/models lists; any other name is served too
    #[arg(long, value_name = "MODEL", value_delimiter = ',')]
    pub models: Vec<String>,
}

fn quota(text: &str) -> Result<(String, u64), String> {
    // From the right: a model's name may hold "=".
    let (model, tpm) = text.rsplit_once('=').ok_or("write MODEL=TPM")?;
    let tpm = tpm.parse().map_err(|_| format!("{tpm:?} is not a number of tokens per minute"))?;
    Ok((model.to_owned(), tpm))
}

impl Args {
    /// The settings these flags stand for.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let defaults = Settings::default();
        Settings {
            seed: self.seed,
            answer: self.answer,
            latency_ms: self.latency_ms,
            first_token_ms: self.first_token_ms,
            token_ms: self.token_ms,
            chunk_tokens: self.chunk_tokens,
            failures: Failures {
                probability: self.fail,
                status: self.fail_status,
                retry_after_s: self.fail_retry_after,
                drop_probability: self.drop,
            },
            quota: self.quota.iter().cloned().collect(),
            models: if self.models.is_empty() { defaults.models } else { self.models.clone() },
        }
    }

    /// Serves until it is interrupted.
    ///
    /// # Errors
    /// When a flag does not make sense or the address cannot be bound.
    pub async fn run(self) -> anyhow::Result<()> {
        let settings = self.settings();
        settings.check().map_err(anyhow::Error::msg)?;
        let provider = Provider::start(self.listen, settings).await?;
        println!("listening on {}", provider.url());
        tokio::select! {
            result = provider.wait() => Ok(result?),
            signal = crate::clock::interrupted() => Ok(signal?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn flags_make_settings() {
        Args::command().debug_assert();
        let args = Args::parse_from(["provider", "--answer", "300~1.5", "--quota", "a=b=100", "--fail", "0.5"]);
        let settings = args.settings();
        assert_eq!(settings.quota.get("a=b"), Some(&100));
        assert_eq!(settings.answer, Size::lognormal(300.0, 1.5));
        assert!(settings.check().is_ok());
        assert_eq!(Args::parse_from(["provider"]).settings(), Settings::default());
    }
}
