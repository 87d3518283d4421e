//! The certificates by which instances are checked, and the one that they are
//! shown.

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::CollectError;
use crate::config::TlsConfig;

/// Reads what `exporter.tls` names.
pub(super) fn read(config: &TlsConfig) -> Result<ClientTlsConfig, CollectError> {
    let TlsConfig { ca, cert, key } = config;
    let mut tls = ClientTlsConfig::new();
    if ca.is_empty() {
        tls = tls.with_enabled_roots();
    } else {
        let authority = pem("exporter.tls.ca", ca, "CERTIFICATE")?;
        tls = tls.ca_certificate(Certificate::from_pem(authority));
        check(&tls, "exporter.tls.ca", ca)?;
    }
    if !cert.is_empty() {
        let shown = pem("exporter.tls.cert", cert, "CERTIFICATE")?;
        let identity = Identity::from_pem(shown, pem("exporter.tls.key", key, "PRIVATE KEY")?);
        // By itself: which of the system's authorities there are is of no account.
        let own = ClientTlsConfig::new().identity(identity.clone());
        check(&own, "exporter.tls.cert and exporter.tls.key", &format!("{cert} and {key}"))?;
        tls = tls.identity(identity);
    }
    Ok(tls)
}

/// A file that holds a `kind` at least by its looks: one without any would count
/// as an empty list.
fn pem(key: &'static str, path: &str, kind: &'static str) -> Result<Vec<u8>, CollectError> {
    let named = |source| CollectError::Read { key, path: path.to_owned(), source };
    let pem = std::fs::read(path).map_err(named)?;
    let end = format!("{kind}-----");
    match pem.windows(end.len()).any(|part| part == end.as_bytes()) {
        true => Ok(pem),
        false => Err(CollectError::NotPem { key, path: path.to_owned(), kind }),
    }
}

fn check(tls: &ClientTlsConfig, key: &'static str, path: &str) -> Result<(), CollectError> {
    let refused = |source| CollectError::Tls { key, path: path.to_owned(), source };
    Endpoint::from_static("https://localhost").tls_config(tls.clone()).map_err(refused)?;
    Ok(())
}
