//! A CA, the certificates that it signs, and servers that listen for TLS only.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::{located, place, run};

/// A CA of the test's own, made by `openssl`.
pub struct Authority {
    dir: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let (_, dir) = place();
        let made = Self { dir };
        made.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=ours");
        made
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        std::fs::read_to_string(self.dir.join("ca.crt")).unwrap()
    }

    /// Signs `dir/tls.crt` for the subject alternative names; the key lies beside it.
    fn sign(&self, dir: &Path, names: &str) {
        std::fs::write(self.dir.join("names"), format!("subjectAltName={names}\n")).unwrap();
        let (key, csr, crt) = (dir.join("tls.key"), dir.join("tls.csr"), dir.join("tls.crt"));
        let [key, csr, crt] = [key, csr, crt].map(|path| path.display().to_string());
        self.openssl_with(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=redis",
            &["-keyout", &key, "-out", &csr],
        );
        self.openssl_with(
            "x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names",
            &["-in", &csr, "-out", &crt],
        );
    }

    fn openssl(&self, words: &str) {
        self.openssl_with(words, &["-keyout", "ca.key", "-out", "ca.crt"]);
    }

    fn openssl_with(&self, words: &str, files: &[&str]) {
        let ran = Command::new("openssl").args(words.split(' ')).args(files).current_dir(&self.dir).output();
        let ran = ran.expect("these tests need the program openssl");
        assert!(ran.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&ran.stderr));
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn binary() -> PathBuf {
    located("TOKENBUDGET_REDIS_TLS_SERVER", "redis-tls/redis-server")
}

/// Whether there is a redis-server with TLS: no package registry has one, so where `e2e/prepare redis-tls` finds none, what
/// needs it is left out.
pub fn there() -> bool {
    let there = binary().is_file();
    if !there {
        eprintln!("left out: there is no redis-server with TLS at {}", binary().display());
    }
    there
}

/// A redis-server, or a Sentinel, that listens for TLS only.
pub struct TlsServer {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl TlsServer {
    /// With a certificate for these names.
    pub fn start(authority: &Authority, names: &str, options: &[&str]) -> Self {
        Self::start_as(
            authority,
            names,
            |port, _| {
                let port = port.to_string();
                ["--tls-port", &port, "--save", "", "--appendonly", "no"]
                    .iter()
                    .chain(options)
                    .map(|&o| o.to_owned())
                    .collect()
            },
            "Ready to accept connections",
        )
    }

    pub fn watch(authority: &Authority, primary: &Self) -> Self {
        Self::start_as(
            authority,
            "IP:127.0.0.1",
            |port, dir| {
                let lines = format!("tls-port {port}\nsentinel monitor ledger 127.0.0.1 {} 1\n", primary.port);
                std::fs::write(dir.join("sentinel.conf"), lines).unwrap();
                vec!["sentinel.conf".to_owned(), "--sentinel".to_owned()]
            },
            "+monitor master",
        )
    }

    fn start_as(authority: &Authority, names: &str, options: impl Fn(u16, &Path) -> Vec<String>, ready: &str) -> Self {
        let binary = binary();
        for _ in 0..20 {
            let (port, dir) = place();
            authority.sign(&dir, names);
            std::fs::write(dir.join("ca.crt"), authority.pem()).unwrap();
            let mut all = options(port, &dir);
            let tls = "--port 0 --bind 127.0.0.1 --tls-cert-file tls.crt --tls-key-file tls.key --tls-ca-cert-file ca.crt \
                       --tls-auth-clients no --tls-replication yes";
            all.extend(tls.split_whitespace().map(str::to_owned));
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            if let Some(child) = run(&binary, &all, &dir, ready) {
                return Self { child, port, dir };
            }
            let _ = std::fs::remove_dir_all(&dir);
        }
        panic!("{} did not start with TLS on any of 20 ports", binary.display());
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
