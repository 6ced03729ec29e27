//! TLS for all connections of ours: rustls, with the system's certificates and, beside them, those of a file.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::error::{Classify, Error, Kind, Result};

/// What a client trusts: the system's certificates, and those of a PEM file.
pub fn client_config(ca_file: Option<&Path>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    // A system without certificates has none to add; a server that needs one says so.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for certificate in ca_file.map(certificates).transpose()?.unwrap_or_default() {
        roots.add(certificate).or_error(Kind::Config, "ca_file")?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().or_error(Kind::Internal, "set up TLS")?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The certificates of a PEM file; at least one.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let context = || format!("read the certificates of {}", file.display());
    let found = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let found = found.or_error(Kind::Config, context())?;
    if found.is_empty() {
        let error = Error::new(Kind::Config, "it holds none").context(context());
        return Err(error.hint("ca_file must hold certificates in PEM form, as -----BEGIN CERTIFICATE-----"));
    }
    Ok(found)
}
