//! TLS identity for a name that no public authority vouches for.

use std::sync::Arc;

use rcgen::CertifiedKey;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio_rustls::TlsAcceptor;
use tower::BoxError;

/// Returns the servers' TLS acceptor and the certificate that clients have to trust. The
/// certificate is valid for `name` alone.
pub(crate) fn identity(name: &str) -> Result<(TlsAcceptor, CertificateDer<'static>), BoxError> {
    // Clients use this provider, too.
    let _ = ring::default_provider().install_default();
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([name.to_owned()])?;
    let key = PrivateKeyDer::try_from(signing_key.serialize_der())?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), cert.der().clone()))
}
