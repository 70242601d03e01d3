//! A client of a provider that runs in another process.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::control::{Arrivals, Range, Usage};
use super::settings::Settings;

/// Talks to a provider's own routes over HTTP.
#[derive(Clone, Debug)]
pub struct Remote {
    url: String,
    http: reqwest::Client,
}

impl Remote {
    /// A provider at `url`: `http://host:port`, with or without `/v1`.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(url: &str) -> Result<Self> {
        let url = url.trim_end_matches('/');
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build()?;
        Ok(Self { url: url.strip_suffix("/v1").unwrap_or(url).to_owned(), http })
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str, range: &Range) -> Result<T> {
        let mut query = Vec::new();
        if let Value::Object(fields) = serde_json::to_value(range)? {
            for (name, value) in fields {
                let value = value.as_str().map_or(value.to_string(), str::to_owned);
                query.push(format!("{name}={}", escaped(&value)));
            }
        }
        let url = format!("{}{path}?{}", self.url, query.join("&"));
        let response = self.http.get(&url).send().await;
        let response = response.with_context(|| format!("GET {url}"))?;
        let body = response.error_for_status()?.bytes().await?;
        serde_json::from_slice(&body).with_context(|| format!("the answer of GET {url}"))
    }

    /// `GET /usage`.
    ///
    /// # Errors
    /// When the provider does not answer.
    pub async fn usage(&self, range: &Range) -> Result<Usage> {
        self.get("/usage", range).await
    }

    /// `GET /arrivals`.
    ///
    /// # Errors
    /// When the provider does not answer.
    pub async fn arrivals(&self, range: &Range) -> Result<Arrivals> {
        self.get("/arrivals", range).await
    }

    /// `GET /settings`.
    ///
    /// # Errors
    /// When the provider does not answer.
    pub async fn settings(&self) -> Result<Settings> {
        self.get("/settings", &Range::default()).await
    }

    /// `PUT /settings` with only the fields that change.
    ///
    /// # Errors
    /// When the provider does not answer, or refuses the patch.
    pub async fn set(&self, patch: &Value) -> Result<Settings> {
        let url = format!("{}/settings", self.url);
        let response = self.http.put(&url).json(patch).send().await?;
        let status = response.status();
        let body = response.bytes().await?;
        if !status.is_success() {
            bail!("PUT {url}: {status} {}", String::from_utf8_lossy(&body));
        }
        Ok(serde_json::from_slice(&body)?)
    }

    /// `DELETE /usage`.
    ///
    /// # Errors
    /// When the provider does not answer.
    pub async fn reset(&self) -> Result<()> {
        let url = format!("{}/usage", self.url);
        self.http.delete(url).send().await?.error_for_status()?;
        Ok(())
    }
}

/// Percent-encodes what may not stand in a query.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn escapes() {
        assert_eq!(super::escaped("azure/gpt 4&x"), "azure%2Fgpt%204%26x");
    }
}
