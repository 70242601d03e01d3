//! Which Redis holds the ledger of a TokenBudget: the one of its spec, else the LiteLLM container's own, else the default.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Secret};
use kube::{Api, Client};

use crate::api::{Reason, SecretKeyRef};
use crate::ledger::{LedgerError, RedisLedger, Timeouts};
use crate::litellm::{CA_KEY, RedisSource, Ref};

/// Where a URL comes from, and the URL. The URL may hold a password: it is never logged or shown.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisLocation {
    /// The URL.
    pub url: String,
    /// The certificates (PEM) to trust instead of the public ones.
    pub ca: Option<String>,
    /// The Secret that the agent's environment has to name, if the container has no Redis of its own.
    pub secret: Option<SecretKeyRef>,
}

impl RedisLocation {
    /// Prepares the connection; nothing is sent yet.
    ///
    /// # Errors
    /// When the URL or the certificate cannot be used.
    pub fn connect(&self) -> Result<RedisLedger, LedgerError> {
        RedisLedger::connect_trusting(&self.url, self.ca.as_deref(), Timeouts::default())
    }
}

/// Why there is no URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRedis {
    /// For the condition.
    pub reason: Reason,
    /// What is missing, and what to do.
    pub message: String,
}

impl NoRedis {
    /// The targets name different servers.
    #[must_use]
    pub fn several(deployment: &str) -> Self {
        let message = format!(
            "Deployment {deployment} names another Redis than the other targets: set spec.redis.urlSecretRef, so that all \
             of them share one ledger"
        );
        Self { reason: Reason::SeveralLedgers, message }
    }
}

/// Finds the URL.
///
/// # Errors
/// [`NoRedis`] says which object or key is missing. An API server that does not answer is an error of the pass.
pub async fn locate(
    client: &Client,
    namespace: &str,
    wanted: Option<&SecretKeyRef>,
    container: &Container,
    default: Option<&SecretKeyRef>,
) -> Result<Result<RedisLocation, NoRedis>, kube::Error> {
    if let Some(secret) = wanted {
        return from_secret(client, namespace, secret, "spec.redis.urlSecretRef").await;
    }
    let source = RedisSource::of(container);
    let values = read_all(client, namespace, source.refs()).await?;
    match source.url(|reference| values.get(reference).cloned()) {
        Ok(Some(url)) => Ok(Ok(RedisLocation { url: qualified(&url, namespace), ca: None, secret: None })),
        Ok(None) => match default {
            Some(secret) => from_secret(client, namespace, secret, "the operator's default").await,
            None => Ok(Err(NoRedis {
                reason: Reason::NoLedger,
                message: "no Redis is named: set spec.redis.urlSecretRef, or REDIS_URL, REDIS_HOST or REDIS_SENTINEL_NODES in the LiteLLM container"
                    .to_owned(),
            })),
        },
        Err(missing) => {
            let message = format!("the LiteLLM container's Redis settings: {missing}");
            Ok(Err(NoRedis { reason: missing.reason(), message }))
        }
    }
}

async fn from_secret(
    client: &Client,
    namespace: &str,
    secret: &SecretKeyRef,
    origin: &str,
) -> Result<Result<RedisLocation, NoRedis>, kube::Error> {
    let name = &secret.name;
    let Some(found) = Api::<Secret>::namespaced(client.clone(), namespace).get_opt(name).await? else {
        let message = format!("{origin}: there is no Secret {name} in namespace {namespace}");
        return Ok(Err(NoRedis { reason: Reason::RedisSettingsMissing, message }));
    };
    Ok(in_secret(found.data.unwrap_or_default(), namespace, secret, origin))
}

fn in_secret(
    mut data: BTreeMap<String, ByteString>,
    namespace: &str,
    secret: &SecretKeyRef,
    origin: &str,
) -> Result<RedisLocation, NoRedis> {
    let (name, key) = (&secret.name, &secret.key);
    let Some(ByteString(bytes)) = data.remove(key) else {
        let message = format!("{origin}: the Secret {name} has no key {key}");
        return Err(NoRedis { reason: Reason::RedisSettingsMissing, message });
    };
    let Ok(url) = String::from_utf8(bytes) else {
        let message = format!("{origin}: key {key} of the Secret {name} is not text");
        return Err(NoRedis { reason: Reason::RedisSettingsInvalid, message });
    };
    // What is no text is no certificate either, which is said when it is used.
    let ca = data.remove(CA_KEY).map(|ByteString(bytes)| String::from_utf8_lossy(&bytes).into_owned());
    Ok(RedisLocation { url: qualified(url.trim(), namespace), ca, secret: Some(secret.clone()) })
}

/// Reads what can be read of these keys.
///
/// # Errors
/// When the API server does not answer; a key that does not exist is left out.
pub async fn read_all<'a>(
    client: &Client,
    namespace: &str,
    references: impl Iterator<Item = &'a Ref>,
) -> Result<HashMap<Ref, String>, kube::Error> {
    let mut values = HashMap::new();
    for reference in references {
        if let Some(value) = read(client, namespace, reference).await? {
            values.insert(reference.clone(), value);
        }
    }
    Ok(values)
}

/// The text of a key; none where there is no such key.
///
/// # Errors
/// When the API server does not answer, or refuses.
pub async fn read(client: &Client, namespace: &str, reference: &Ref) -> Result<Option<String>, kube::Error> {
    match reference {
        Ref::Secret { name, key } => {
            let found = Api::<Secret>::namespaced(client.clone(), namespace).get_opt(name).await?;
            let bytes = found.and_then(|secret| secret.data?.remove(key));
            Ok(bytes.and_then(|ByteString(bytes)| String::from_utf8(bytes).ok()))
        }
        Ref::ConfigMap { name, key } => {
            let found = Api::<ConfigMap>::namespaced(client.clone(), namespace).get_opt(name).await?;
            Ok(found.and_then(|map| map.data?.remove(key)))
        }
    }
}

/// A name without a dot means a Service of the pod's namespace; from the operator's namespace it has to say so.
fn qualified(url: &str, namespace: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    let (login, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    let hosts: Vec<String> = hosts.split(',').map(|host| qualified_host(host, namespace)).collect();
    format!("{scheme}://{login}{}{path}", hosts.join(","))
}

fn qualified_host(host_port: &str, namespace: &str) -> String {
    let (host, port) = host_port.split_at(host_port.find(':').unwrap_or(host_port.len()));
    let is_short =
        !host.is_empty() && !host.contains(['.', '[']) && host != "localhost" && host.parse::<IpAddr>().is_err();
    if is_short { format!("{host}.{namespace}{port}") } else { host_port.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_holds_the_url_and_the_ca() {
        let secret = SecretKeyRef { name: "ledger".into(), key: "url".into() };
        let read = |entries: &[(&str, &[u8])]| {
            let data = entries.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.to_vec()))).collect();
            in_secret(data, "llm", &secret, "spec.redis.urlSecretRef")
        };
        let found = read(&[("url", b"rediss://redis\n"), ("ca.crt", b"pem"), ("tls.crt", b"x")]).ok().unwrap();
        assert_eq!((found.url.as_str(), found.ca.as_deref()), ("rediss://redis.llm", Some("pem")));
        assert_eq!(found.secret, Some(secret.clone()));
        let found = read(&[("url", b"redis+sentinel://a,b/m")]).ok().unwrap();
        assert_eq!((found.url.as_str(), found.ca), ("redis+sentinel://a.llm,b.llm/m", None));
        for (entries, reason, message) in [
            (&[("ca.crt", &b"pem"[..])], Reason::RedisSettingsMissing, "the Secret ledger has no key url"),
            (&[("url", &b"\xff"[..])], Reason::RedisSettingsInvalid, "key url of the Secret ledger is not text"),
        ] {
            let problem = read(entries).err().unwrap();
            assert_eq!((problem.reason, problem.message), (reason, format!("spec.redis.urlSecretRef: {message}")));
        }
    }

    #[test]
    fn an_own_ca_is_checked_before_anything_is_sent() {
        let location = RedisLocation { url: "rediss://redis.llm".into(), ca: Some("pem".into()), secret: None };
        assert!(matches!(location.connect(), Err(LedgerError::InvalidCa)));
    }

    #[test]
    fn short_names_get_the_namespace_of_the_pods() {
        assert_eq!(qualified("redis://:p%40@redis:6379/1", "llm"), "redis://:p%40@redis.llm:6379/1");
        assert_eq!(
            qualified("redis+sentinel://u:p,@a,b.svc:1,[::1]:2,c:3/m/1?sentinel_password=d,e@f", "llm"),
            "redis+sentinel://u:p,@a.llm,b.svc:1,[::1]:2,c.llm:3/m/1?sentinel_password=d,e@f"
        );
        for complete in [
            "redis://127.0.0.1:6379",
            "rediss://u:p@redis.prod.svc:1/0",
            "redis://localhost",
            "redis://[::1]:1",
            "nothing",
        ] {
            assert_eq!(qualified(complete, "llm"), complete);
        }
    }
}
