//! What a Redis URL says: one server, or the Sentinels that know it. The agent reads it alike
//! (`agent/tests/addresses.json` holds both to it).

use redis::{Client, RedisError, RedisResult, TlsCertificates};

use crate::ledger::error::LedgerError;

/// Where a Sentinel listens, unless its address says otherwise.
const SENTINEL_PORT: u16 = 26_379;

const NO_PARSE: &str = "it does not parse: it has to name a host, the port has to be a number, and special characters of \
     user and password have to be percent-encoded (%2F for /, %23 for #, %3F for ?, %40 for @)";

/// Where the ledger is.
pub(super) struct Address {
    /// The server. Behind Sentinels only its user, password and TLS count: the Sentinels say where it is.
    pub(super) server: Client,
    /// Whom to ask for the server; nobody where the URL names it.
    pub(super) sentinels: Vec<Client>,
    /// What the Sentinels call it.
    pub(super) service: String,
}

impl Address {
    /// Reads the URL. What the client says of a bad one may quote it, so only fixed texts are passed on. With `ca`, its
    /// certificates (PEM) are those that are trusted.
    pub(super) fn read(url: &str, ca: Option<&str>) -> Result<Self, LedgerError> {
        let url = url.trim();
        if url.is_empty() {
            return Err(invalid("it is empty"));
        }
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        // What other clients would do with options is not what we do.
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        match scheme {
            "redis" | "rediss" => {
                let server = client(&format!("{scheme}://{rest}"), ca)?;
                Ok(Self { server, sentinels: Vec::new(), service: String::new() })
            }
            "redis+sentinel" => Self::behind_sentinels("redis", rest, options, ca),
            "rediss+sentinel" => Self::behind_sentinels("rediss", rest, options, ca),
            _ => Err(invalid(
                "it does not start with redis:// or rediss://, nor with redis+sentinel:// or rediss+sentinel://",
            )),
        }
    }

    /// `[user:password@]host[:port][,host[:port]...]/service[/db]`, as LiteLLM's own RedisVL and others write it: user,
    /// password and database are the server's.
    fn behind_sentinels(scheme: &str, rest: &str, options: &str, ca: Option<&str>) -> Result<Self, LedgerError> {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = match authority.rfind('@') {
            Some(at) => authority.split_at(at + 1),
            None => ("", authority),
        };
        let (service, db) = path.split_once('/').unwrap_or((path, ""));
        // What a Sentinel's configuration allows.
        if service.is_empty() || !service.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
            return Err(invalid(&format!(
                "it names no service of the Sentinels: {scheme}+sentinel://[user:password@]host:port[,host:port]/service[/db]"
            )));
        }
        let first = hosts.split(',').next().unwrap_or_default();
        let server = client(&format!("{scheme}://{login}{first}/{db}"), ca)?;
        let (mut user, mut password) = (None, None);
        let decoded = redis::parse_redis_url(&format!("redis://host/?{options}")).ok_or_else(|| invalid(NO_PARSE))?;
        for (name, value) in decoded.query_pairs() {
            match name.as_ref() {
                "sentinel_username" => user = Some(value.into_owned()),
                "sentinel_password" => password = Some(value.into_owned()),
                _ => return Err(invalid("it has other options than sentinel_username and sentinel_password")),
            }
        }
        let sentinel = |host: &str| {
            let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
            let port = if has_port { String::new() } else { format!(":{SENTINEL_PORT}") };
            let found = client(&format!("{scheme}://{host}{port}"), ca)?;
            let info = found.get_connection_info();
            let mut settings = info.redis_settings().clone();
            if let Some(user) = &user {
                settings = settings.set_username(user);
            }
            if let Some(password) = &password {
                settings = settings.set_password(password);
            }
            Client::open(info.clone().set_redis_settings(settings)).map_err(refused)
        };
        let sentinels = hosts.split(',').map(sentinel).collect::<Result<_, _>>()?;
        Ok(Self { server, sentinels, service: service.to_owned() })
    }

    /// For logs and errors: the server, or the Sentinels' name for it.
    pub(super) fn named(&self) -> String {
        let host = |client: &Client| client.get_connection_info().addr().to_string();
        if self.sentinels.is_empty() {
            return host(&self.server);
        }
        let sentinels: Vec<String> = self.sentinels.iter().map(host).collect();
        format!("{} of the Sentinels {}", self.service, sentinels.join(", "))
    }

    /// What an error must not show.
    pub(super) fn passwords(&self) -> impl Iterator<Item = &str> {
        let all = std::iter::once(&self.server).chain(&self.sentinels);
        all.filter_map(|client| client.get_connection_info().redis_settings().password())
            .filter(|password| !password.is_empty())
    }
}

fn client(url: &str, ca: Option<&str>) -> Result<Client, LedgerError> {
    let has_host = redis::parse_redis_url(url).is_some_and(|url| url.host_str().is_some_and(|host| !host.is_empty()));
    // A fragment would switch off what is checked of a certificate.
    if !has_host || url.contains('#') {
        return Err(invalid(NO_PARSE));
    }
    match ca {
        // No certificate at all is no error of the client's.
        Some(ca) if url.starts_with("rediss:") && !ca.contains("-----BEGIN CERTIFICATE-----") => {
            Err(LedgerError::InvalidCa)
        }
        Some(ca) if url.starts_with("rediss:") => trusting(url, ca).map_err(|_| LedgerError::InvalidCa),
        _ => Client::open(url).map_err(refused),
    }
}

fn trusting(url: &str, ca: &str) -> RedisResult<Client> {
    let open = Client::open(url)?;
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(ca.as_bytes().to_vec()) };
    Client::build_with_tls(open.get_connection_info().clone(), certificates)
}

fn refused(error: RedisError) -> LedgerError {
    LedgerError::InvalidUrl { problem: error.kind_text() }
}

fn invalid(problem: &str) -> LedgerError {
    LedgerError::InvalidUrl { problem: problem.to_owned() }
}

pub(super) trait FixedText {
    fn kind_text(&self) -> String;
}

impl FixedText for RedisError {
    /// The error's text without its detail.
    fn kind_text(&self) -> String {
        let text = self.to_string();
        match self.detail() {
            Some(detail) if !detail.is_empty() => text.replace(detail, "…"),
            _ => text,
        }
    }
}

#[cfg(test)]
mod tests;
