//! Reading keys that are not the ledger's own: LiteLLM's counters, which lie beside it.

use futures::StreamExt;
use redis::{ErrorKind, FromRedisValue, RedisResult, ServerErrorKind, Value};

use super::RedisLedger;
use super::connect::Nodes;
use crate::ledger::error::LedgerError;

/// Keys in one command, so that it never holds the server up for long.
const KEYS_AT_ONCE: usize = 500;

/// Commands under way to a cluster, where each key is asked for by itself.
const COMMANDS_AT_ONCE: usize = 32;

/// Not a UID: what a server says of these keys says nothing of where a TokenBudget is.
const ROUTE: &str = "counters";

impl RedisLedger {
    /// The texts under these keys, in their order; none where there is no text. In a cluster the keys are all over it, so
    /// each is asked for by itself. Answers within the deadline of a call.
    ///
    /// # Errors
    /// When Redis does not answer, or refuses (the user may not read these keys).
    pub async fn texts(&self, keys: &[String]) -> Result<Vec<Option<String>>, LedgerError> {
        let after = self.inner.timeouts.call;
        let reading = async {
            let mut texts = Vec::with_capacity(keys.len());
            for keys in keys.chunks(KEYS_AT_ONCE) {
                match self.texts_at_once(keys).await? {
                    Some(some) => texts.extend(some),
                    None => texts.extend(self.texts_one_by_one(keys).await?),
                }
            }
            Ok(texts)
        };
        tokio::time::timeout(after, reading).await.unwrap_or(Err(LedgerError::Timeout { after }))
    }

    /// None where the keys are in different slots of a cluster.
    async fn texts_at_once(&self, keys: &[String]) -> Result<Option<Vec<Option<String>>>, LedgerError> {
        let work = |mut connection| async move {
            let answer: RedisResult<Vec<Value>> = redis::cmd("MGET").arg(keys).query_async(&mut connection).await;
            match answer {
                Ok(values) => Ok(Some(values)),
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::CrossSlot) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let _forget = Forget(&self.inner.nodes, ROUTE);
        let values = self.run(ROUTE, "MGET", work).await?;
        match values {
            Some(values) if values.len() == keys.len() => Ok(Some(values.into_iter().map(text).collect())),
            Some(_) => Err(LedgerError::malformed("MGET")),
            None => Ok(None),
        }
    }

    async fn texts_one_by_one(&self, keys: &[String]) -> Result<Vec<Option<String>>, LedgerError> {
        let one = |key: &String| {
            let key = key.clone();
            async move {
                let name = key.as_str();
                let work =
                    |mut connection| async move { redis::cmd("GET").arg(name).query_async(&mut connection).await };
                let _forget = Forget(&self.inner.nodes, name);
                self.run(name, "GET", work).await.map(text)
            }
        };
        let texts: Vec<_> = futures::stream::iter(keys).map(one).buffered(COMMANDS_AT_ONCE).collect().await;
        texts.into_iter().collect()
    }
}

/// Forgets at which node of a cluster a key is, also where its reading is cut off: the names of counters have the minute in them.
struct Forget<'a>(&'a Nodes, &'a str);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.forget(self.1);
    }
}

fn text(value: Value) -> Option<String> {
    Option::<String>::from_redis_value(value).ok().flatten()
}
