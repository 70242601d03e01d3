//! Who the primary is, by its Sentinels.

use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult};

use super::Timeouts;

/// `host:port` of the primary, by the first Sentinel that knows it. They are asked at the same time: one that is away would
/// cost the others their time.
///
/// Whether it is one now, its answers tell: a replica refuses to write. So the ledger's user needs no further command.
pub(super) async fn primary(sentinels: &[Client], service: &str, timeouts: Timeouts) -> RedisResult<String> {
    let asked = sentinels.iter().map(|sentinel| Box::pin(ask(sentinel, service, timeouts)));
    let (found, _) = futures::future::select_ok(asked).await?;
    Ok(found)
}

async fn ask(sentinel: &Client, service: &str, timeouts: Timeouts) -> RedisResult<String> {
    let explained = |error: RedisError| {
        let at = sentinel.get_connection_info().addr();
        RedisError::from((ErrorKind::Io, "a Sentinel cannot be asked", format!("{at}: {error}")))
    };
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(timeouts.connect))
        .set_response_timeout(Some(timeouts.response));
    let mut connection = sentinel.get_multiplexed_async_connection_with_config(&config).await.map_err(explained)?;
    let mut question = redis::cmd("SENTINEL");
    question.arg("GET-MASTER-ADDR-BY-NAME").arg(service);
    let found: Option<(String, u16)> = question.query_async(&mut connection).await.map_err(explained)?;
    match found {
        Some((host, port)) => Ok(format!("{host}:{port}")),
        None => Err(RedisError::from((
            ErrorKind::MasterNameNotFoundBySentinel,
            "the Sentinels know no service of this name",
            service.to_owned(),
        ))),
    }
}
