//! The Redis that a LiteLLM container is set up with.

use k8s_openapi::api::core::v1::Container;

use super::env::{Missing, Ref, Setting, setting};

/// Kinds of Redis that LiteLLM can use and the ledger cannot, by the variable that switches them on.
const OTHER_KINDS: [(&str, &str); 4] = [
    ("REDIS_CLUSTER_NODES", "names a Redis Cluster"),
    ("REDIS_SENTINEL_NODES", "names Redis Sentinels"),
    ("REDIS_GCP_SERVICE_ACCOUNT", "asks for Google IAM authentication"),
    ("REDIS_AZURE_AD_TOKEN", "asks for Microsoft Entra authentication"),
];

/// Where a container's own Redis settings come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSource {
    /// `REDIS_URL`; it beats the others.
    pub url: Setting,
    /// `REDIS_HOST`.
    pub host: Setting,
    /// `REDIS_PORT`, 6379 when absent.
    pub port: Setting,
    /// `REDIS_USERNAME`.
    pub username: Setting,
    /// `REDIS_PASSWORD`.
    pub password: Setting,
    /// `REDIS_SSL`.
    pub ssl: Setting,
    /// Settings that make LiteLLM use a Redis in a way that the ledger cannot.
    others: Vec<(&'static str, &'static str, Setting)>,
}

impl RedisSource {
    /// Reads the settings of a container.
    #[must_use]
    pub fn of(container: &Container) -> Self {
        let get = |name| setting(container, name);
        Self {
            url: get("REDIS_URL"),
            host: get("REDIS_HOST"),
            port: get("REDIS_PORT"),
            username: get("REDIS_USERNAME"),
            password: get("REDIS_PASSWORD"),
            ssl: get("REDIS_SSL"),
            others: OTHER_KINDS.iter().map(|(name, does)| (*name, *does, get(name))).collect(),
        }
    }

    /// Everything that has to be read before [`Self::url`] can answer.
    pub fn refs(&self) -> impl Iterator<Item = &Ref> {
        [&self.url, &self.host, &self.port, &self.username, &self.password, &self.ssl]
            .into_iter()
            .chain(self.others.iter().map(|(_, _, found)| found))
            .flat_map(Setting::refs)
    }

    /// The URL of the Redis; none when the container names none.
    ///
    /// # Errors
    /// [`Missing`] when a setting is named and cannot be read or used.
    pub fn url(&self, resolve: impl Fn(&Ref) -> Option<String>) -> Result<Option<String>, Missing> {
        let get = |variable: &str, from: &Setting| -> Result<Option<String>, Missing> {
            Ok(from.resolve(variable, &resolve)?.filter(|text| !text.is_empty()))
        };
        if let Some(url) = get("REDIS_URL", &self.url)? {
            if !(url.starts_with("redis://") || url.starts_with("rediss://")) {
                return Err(invalid("REDIS_URL", "must start with redis:// or rediss://"));
            }
            return Ok(Some(url));
        }
        for (variable, does, from) in &self.others {
            if get(variable, from)?.is_some() {
                let problem = format!("{does}, which the ledger cannot use: name a Redis in spec.redis.urlSecretRef");
                return Err(invalid(variable, &problem));
            }
        }
        let Some(host) = get("REDIS_HOST", &self.host)? else {
            return Ok(None);
        };
        let port = match get("REDIS_PORT", &self.port)? {
            None => 6379,
            Some(text) => text.trim().parse::<u16>().map_err(|_| invalid("REDIS_PORT", "must be a port number"))?,
        };
        let encrypted = get("REDIS_SSL", &self.ssl)?.is_some_and(|text| is_true(&text));
        let user = get("REDIS_USERNAME", &self.username)?.unwrap_or_default();
        let login = match get("REDIS_PASSWORD", &self.password)? {
            None => String::new(),
            Some(password) => format!("{}:{}@", percent_encode(&user), percent_encode(&password)),
        };
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
        let scheme = if encrypted { "rediss" } else { "redis" };
        Ok(Some(format!("{scheme}://{login}{host}:{port}")))
    }
}

fn invalid(variable: &str, problem: &str) -> Missing {
    Missing::Invalid { variable: variable.to_owned(), problem: problem.to_owned() }
}

fn is_true(text: &str) -> bool {
    ["true", "1", "yes"].contains(&text.trim().to_ascii_lowercase().as_str())
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn percent_encode(text: &str) -> String {
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
    use super::super::choose_container;
    use super::super::test_support::{componentized, container, litellm_helm};
    use super::*;

    fn url(yaml: &str) -> Result<Option<String>, Missing> {
        RedisSource::of(&container(yaml)).url(|found| match found {
            Ref::Secret { key, .. } if key == "password" => Some("p@ss/w:rd".to_owned()),
            _ => None,
        })
    }

    #[test]
    fn the_charts_settings_make_a_url() {
        let helm = litellm_helm();
        let source = RedisSource::of(choose_container(&helm, None).unwrap());
        let refs: Vec<String> = source.refs().map(ToString::to_string).collect();
        assert!(refs.contains(&"key redis-password of Secret llm-redis".to_owned()), "{refs:?}");
        assert_eq!(
            source.url(
                |found| matches!(found, Ref::Secret { name, .. } if name == "llm-redis")
                    .then(|| "a b".to_owned())
            ),
            Ok(Some("redis://:a%20b@llm-redis-master:6379".to_owned()))
        );
        let gateway = componentized();
        let source = RedisSource::of(choose_container(&gateway, None).unwrap());
        assert_eq!(
            source.url(|_| Some("s3cret".to_owned())),
            Ok(Some("redis://:s3cret@redis.llm.svc:6380".to_owned()))
        );
    }

    #[test]
    fn a_url_beats_the_parts() {
        assert_eq!(
            url("{name: a, env: [{name: REDIS_URL, value: 'redis://r:1/2'}, {name: REDIS_HOST, value: h}]}"),
            Ok(Some("redis://r:1/2".to_owned()))
        );
        assert!(url("{name: a, env: [{name: REDIS_URL, value: 'unix:///x'}]}").is_err());
        assert_eq!(url("{name: a, env: [{name: REDIS_URL, value: ''}]}"), Ok(None));
    }

    #[test]
    fn parts_are_encoded() {
        let yaml = "{name: a, env: [{name: REDIS_HOST, value: '::1'}, {name: REDIS_USERNAME, value: 'a:b'},
            {name: REDIS_SSL, value: 'True'}, {name: REDIS_PASSWORD, valueFrom: {secretKeyRef: {name: s, key: password}}}]}";
        assert_eq!(url(yaml), Ok(Some("rediss://a%3Ab:p%40ss%2Fw%3Ard@[::1]:6379".to_owned())));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let yaml = "{name: a, env: [{name: REDIS_HOST, value: h},
            {name: REDIS_PASSWORD, valueFrom: {secretKeyRef: {name: s, key: other}}}]}";
        assert!(url(yaml).unwrap_err().to_string().contains("key other of Secret s"));
        let cluster = "{name: a, env: [{name: REDIS_HOST, value: h}, {name: REDIS_CLUSTER_NODES, value: '[]'}]}";
        assert!(url(cluster).unwrap_err().to_string().contains("Redis Cluster"));
        assert!(url("{name: a, env: [{name: REDIS_HOST, value: h}, {name: REDIS_PORT, value: 'tcp://1:2'}]}").is_err());
    }

    #[test]
    fn no_redis_is_none() {
        assert_eq!(url("{name: a}"), Ok(None));
        assert_eq!(url("{name: a, envFrom: [{secretRef: {name: nothing}}]}"), Ok(None));
    }
}
