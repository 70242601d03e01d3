//! A command to the rig's Redis, as one types it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::rig::Rig;

const DEADLINE: Duration = Duration::from_secs(5);

/// Sends a command, and answers with the text of a simple or bulk reply.
///
/// # Errors
/// When Redis does not answer, or with an error.
pub async fn command(rig: &Rig, line: &str) -> Result<String> {
    let address = rig.redis_url.trim_start_matches("redis://");
    let talk = async {
        let mut stream = BufReader::new(TcpStream::connect(address).await?);
        stream.write_all(format!("{line}\r\n").as_bytes()).await?;
        let mut first = String::new();
        stream.read_line(&mut first).await?;
        ensure!(!first.starts_with('-'), "{line}: {}", first.trim());
        let Some(length) = first.strip_prefix('$') else {
            return Ok(first.trim_start_matches('+').trim().to_owned());
        };
        let mut bulk = vec![0; length.trim().parse()?];
        stream.read_exact(&mut bulk).await?;
        Ok(String::from_utf8(bulk)?)
    };
    timeout(DEADLINE, talk).await.with_context(|| format!("{line}: no answer"))?
}
