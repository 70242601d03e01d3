//! One request: send it, read the answer to its end, say what came of it.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use tokio::time::timeout_at;

use super::prompt::Ask;
use super::targets::{Target, TargetWatch};

/// What every request of a load shares.
#[derive(Debug)]
pub struct Sender {
    http: reqwest::Client,
    path: &'static str,
    authorization: Option<String>,
    timeout: Duration,
    targets: TargetWatch,
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The status, if a response came at all.
    pub status: Option<u16>,
    /// The target that gave it, or that was tried last.
    pub target: Option<Arc<str>>,
    /// `Retry-After`, in seconds.
    pub retry_after_s: Option<f64>,
    /// Whether another target had to be tried after a refused connection.
    pub retried_connect: bool,
    /// Why it is lost although the status may be 200.
    pub error: Option<String>,
}

impl Sender {
    /// A sender with one pool of kept-alive connections.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(
        path: &'static str,
        key: Option<&str>,
        timeout: Duration,
        targets: TargetWatch,
    ) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .http1_only()
            .tcp_nodelay(true)
            // uvicorn closes a connection after 5 idle seconds; one that it is about to close loses a request.
            .pool_idle_timeout(Duration::from_secs(2))
            .connect_timeout(timeout.min(Duration::from_secs(5)))
            .build()?;
        Ok(Self { http, path, authorization: key.map(|key| format!("Bearer {key}")), timeout, targets })
    }

    /// The targets it spreads over.
    #[must_use]
    pub const fn targets(&self) -> &TargetWatch {
        &self.targets
    }

    /// Sends a request to `target`; a connection that cannot be made is tried
    /// once more on another one (chosen by `dice`), as a client whose Service
    /// gives it another pod. Without a target the request is lost.
    pub async fn send(&self, ask: &Ask, target: Option<Target>, dice: u64) -> Reply {
        let mut reply = Reply::default();
        let Some(mut target) = target else {
            reply.error = Some("no ready pod".to_owned());
            return reply;
        };
        let deadline = tokio::time::Instant::now() + self.timeout;
        loop {
            reply.target = Some(target.name.clone());
            let result = timeout_at(deadline, self.attempt(ask, &target, &mut reply)).await;
            match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.is_connect() && !reply.retried_connect => {
                    reply.retried_connect = true;
                    target = self.another(&target, dice);
                    continue;
                }
                Ok(Err(error)) => reply.error = Some(kind(&error)),
                Err(_) => reply.error = Some("deadline".to_owned()),
            }
            return reply;
        }
    }

    /// Any ready target but this one; this one if there is no other.
    fn another(&self, failed: &Target, dice: u64) -> Target {
        let ready = self.targets.ready();
        let others: Vec<&Target> = ready.iter().filter(|t| t.name != failed.name).collect();
        // The remainder is below the length, so both casts are exact.
        let index = (dice % others.len().max(1) as u64) as usize;
        others.get(index).map_or(failed, |t| *t).clone()
    }

    async fn attempt(&self, ask: &Ask, target: &Target, reply: &mut Reply) -> Result<(), reqwest::Error> {
        let mut request = self
            .http
            .post(format!("{}{}", target.url, self.path))
            .header(CONTENT_TYPE, "application/json")
            .body(ask.body.clone());
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = request.send().await?;
        reply.status = Some(response.status().as_u16());
        reply.retry_after_s =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let streamed = ask.stream && response.status().is_success();
        let mut chunks = response.bytes_stream();
        let mut text = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            if streamed {
                text.extend_from_slice(&chunk);
            }
        }
        if streamed {
            reply.error = stream_error(&text);
        }
        Ok(())
    }
}

/// What is wrong with the events of a stream that ended normally.
fn stream_error(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines().map(str::trim_end);
    if lines.any(|line| line.starts_with("data: {\"error\"") || line == "event: error") {
        return Some("error in the stream".to_owned());
    }
    let ended = |line: &str| {
        line == "data: [DONE]" || line.contains("\"response.completed\"") || line == "event: response.completed"
    };
    (!text.lines().map(str::trim_end).any(ended)).then(|| "stream cut".to_owned())
}

/// A few words for an error, so that equal ones can be counted.
fn kind(error: &reqwest::Error) -> String {
    let kind = if error.is_connect() {
        "connect"
    } else if error.is_timeout() {
        "deadline"
    } else if error.is_body() || error.is_decode() {
        "answer cut"
    } else {
        "connection lost"
    };
    kind.to_owned()
}

#[cfg(test)]
mod tests {
    use super::stream_error;

    #[test]
    fn sees_a_cut_and_a_failed_stream() {
        assert_eq!(stream_error(b"data: {\"id\":1}\n\ndata: [DONE]\n\n"), None);
        assert!(stream_error(b"data: {\"id\":1}\n\n").unwrap().contains("cut"));
        let failed = b"data: {\"error\": {}}\n\ndata: [DONE]\n\n";
        assert!(stream_error(failed).unwrap().contains("error"));
        let responses = b"event: response.completed\ndata: {\"type\":\"response.completed\"}\n\n";
        assert_eq!(stream_error(responses), None);
    }
}
