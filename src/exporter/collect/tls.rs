//! TLS to instances: the certificates by which they are checked, the one that
//! they are shown, and the handshake.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use once_cell::sync::OnceCell;
use rustls_native_certs::{CertificateResult, load_native_certs};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::CollectError;
use crate::config::TlsConfig;

/// HTTP/2, as the handshake calls it.
const HTTP_2: &[u8] = b"h2";

/// What `exporter.tls` names, read once.
pub(super) struct Tls {
    /// What instances are shown.
    identity: Option<Arc<SingleCertAndKey>>,
    /// The same for all instances. The system's authorities are hundreds, so
    /// that they are loaded for the first connection that needs them; that all
    /// else waits for it once, for some milliseconds, is put up with.
    client: OnceCell<Arc<ClientConfig>>,
    /// How the system's authorities are loaded.
    load: fn() -> Result<RootCertStore, CollectError>,
}

impl Tls {
    /// Reads what `exporter.tls` names.
    pub fn read(config: &TlsConfig) -> Result<Self, CollectError> {
        let TlsConfig { ca, cert, key } = config;
        let roots = (!ca.is_empty()).then(|| configured_roots(ca)).transpose()?;
        let identity = (!cert.is_empty()).then(|| identity(cert, key)).transpose()?;
        let tls = Self { identity, client: OnceCell::new(), load: system_roots };
        if let Some(roots) = roots {
            tls.client.get_or_init(|| tls.checking_by(roots));
        }
        Ok(tls)
    }

    /// For a connection to `host`, a name or an address. What failed to load is
    /// loaded anew for the next one.
    pub fn handshake(&self, host: ServerName<'static>) -> Result<Handshake, CollectError> {
        let client = self.client.get_or_try_init(|| Ok(self.checking_by((self.load)()?)))?;
        Ok(Handshake { client: Arc::clone(client), host })
    }

    fn checking_by(&self, roots: RootCertStore) -> Arc<ClientConfig> {
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has what TLS 1.2 and 1.3 need")
            .with_root_certificates(roots);
        let mut client = match &self.identity {
            Some(identity) => client.with_client_cert_resolver(Arc::clone(identity) as _),
            None => client.with_no_client_auth(),
        };
        client.alpn_protocols = vec![HTTP_2.to_vec()];
        Arc::new(client)
    }
}

/// What begins each connection to an instance.
#[derive(Clone)]
pub(super) struct Handshake {
    client: Arc<ClientConfig>,
    host: ServerName<'static>,
}

impl Handshake {
    pub async fn perform(
        self,
        stream: TcpStream,
        limit: Duration,
    ) -> io::Result<TlsStream<TcpStream>> {
        let handshake = TlsConnector::from(self.client).connect(self.host, stream);
        let stream = timeout(limit, handshake).await??;
        match stream.get_ref().1.alpn_protocol() {
            Some(HTTP_2) => Ok(stream),
            _ => Err(io::Error::other("the instance does not speak HTTP/2")),
        }
    }
}

fn system_roots() -> Result<RootCertStore, CollectError> {
    let CertificateResult { certs, errors, .. } = load_native_certs();
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(certs) {
        (0, _) => Err(CollectError::NoRoots { errors }),
        _ => Ok(roots),
    }
}

fn configured_roots(ca: &str) -> Result<RootCertStore, CollectError> {
    const KEY: &str = "exporter.tls.ca";
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(certificates(KEY, ca)?) {
        (0, _) => Err(not_pem(KEY, ca, "CERTIFICATE")),
        _ => Ok(roots),
    }
}

fn identity(cert: &str, key: &str) -> Result<Arc<SingleCertAndKey>, CollectError> {
    const KEY: &str = "exporter.tls.key";
    let shown = certificates("exporter.tls.cert", cert)?;
    let private = PrivateKeyDer::from_pem_slice(&read(KEY, key)?)
        .map_err(|_| not_pem(KEY, key, "PRIVATE KEY"))?;
    let identity = CertifiedKey::from_der(shown, private, &ring::default_provider());
    let identity = identity.map_err(|source| CollectError::Tls {
        key: "exporter.tls.cert and exporter.tls.key",
        path: format!("{cert} and {key}"),
        source: Box::new(source),
    })?;
    Ok(Arc::new(identity.into()))
}

/// One certificate at least.
fn certificates(
    key: &'static str,
    path: &str,
) -> Result<Vec<CertificateDer<'static>>, CollectError> {
    let pem = read(key, path)?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(not_pem(key, path, "CERTIFICATE")),
    }
}

fn read(key: &'static str, path: &str) -> Result<Vec<u8>, CollectError> {
    std::fs::read(path).map_err(|source| CollectError::Read { key, path: path.to_owned(), source })
}

/// Without the parser's words, which may quote what is secret.
fn not_pem(key: &'static str, path: &str, kind: &'static str) -> CollectError {
    CollectError::NotPem { key, path: path.to_owned(), kind }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::net::TcpListener;
    use tokio::time::Instant;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;

    use super::super::{AskError, Manner, Peer};
    use super::*;
    use crate::config::Config;

    fn file(name: &str) -> String {
        format!("{}/tests/support/tls/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    #[tokio::test]
    async fn the_systems_roots_are_loaded_once_for_a_thousand_connections_and_not_for_none() {
        let manner = Arc::new(Manner::new(&Config::default()).unwrap());
        let url = "grpcs://[::1]:1".parse().unwrap();
        let _peers: Vec<_> = (0..1000).map(|_| Peer::new(&url, &manner).unwrap()).collect();
        assert!(manner.tls.client.get().is_none(), "nobody has connected yet");
        let host = ServerName::try_from("localhost").unwrap();
        let shares: Vec<_> = (0..1000).map(|_| manner.tls.handshake(host.clone())).collect();
        let client = manner.tls.client.get().unwrap();
        assert_eq!(Arc::strong_count(client), shares.len() + 1, "each has a share, none its own");
    }

    #[tokio::test]
    async fn roots_that_failed_to_load_are_loaded_for_the_next_connection() {
        static HAS_FAILED: AtomicBool = AtomicBool::new(false);
        let mut manner = Manner::new(&Config::default()).unwrap();
        manner.schedule.retries = 0;
        manner.tls.load = || match HAS_FAILED.swap(true, Ordering::Relaxed) {
            false => Err(CollectError::NoRoots { errors: Vec::new() }),
            true => system_roots(),
        };
        let peer = Peer::new(&"grpcs://127.0.0.1:1".parse().unwrap(), &Arc::new(manner)).unwrap();
        let error = async || match peer.ask(Instant::now(), false).await.result {
            Err(AskError::Connect(text)) => text,
            other => panic!("nobody listens there: {other:?}"),
        };
        let text = error().await;
        assert!(text.contains("the system has no certificates"), "{text}");
        let text = error().await;
        assert!(text.contains("refused"), "it came as far as the network: {text}");
    }

    #[tokio::test]
    async fn a_handshake_is_with_http_2_or_over_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let tls = Tls::read(&TlsConfig { ca: file("ca.pem"), ..TlsConfig::default() }).unwrap();
        let error = async |limit| {
            let handshake = tls.handshake(addr.ip().into()).unwrap();
            let stream = TcpStream::connect(addr).await.unwrap();
            handshake.perform(stream, limit).await.err().unwrap()
        };
        // Whoever connects waits, until he is accepted.
        assert_eq!(error(Duration::from_millis(10)).await.kind(), io::ErrorKind::TimedOut);

        let provider = Arc::new(ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(identity(&file("loopback.pem"), &file("loopback.key")).unwrap());
        let acceptor = TlsAcceptor::from(Arc::new(server));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                _ = acceptor.accept(stream).await;
            }
        });
        let error = error(Duration::from_secs(60)).await;
        assert!(error.to_string().contains("HTTP/2"), "{error}");
    }
}
