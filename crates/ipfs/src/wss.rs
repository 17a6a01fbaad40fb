//! The operator's certificate, with which a WebSocket listener (`/tls/ws`) proves itself to a browser.
//!
//! A page that came over HTTPS may open no other socket. This TLS is for that page alone: who the peer is, is still
//! settled by the libp2p handshake inside. The two files are PEM, as ACME clients write them, and read once, when the
//! node starts; after a renewal it is started again.

use std::path::Path;

use libp2p::websocket::tls;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::{CertificateFiles, Error};

/// What the WebSocket transport listens with.
pub(crate) fn config(files: Option<&CertificateFiles>) -> Result<tls::Config, Error> {
    let Some(files) = files else { return Ok(tls::Config::client()) };
    let chain = chain(&files.chain)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| unreadable(&files.key, &error))?;
    // The library asserts that a key is one of the three encodings that this type holds.
    let key = tls::PrivateKey::new(key.secret_der().to_vec());
    tls::Config::new(key, chain).map_err(|error| {
        let reason = format!("is not the key of the certificate in {}: {error}", files.chain.display());
        refused(&files.key, reason)
    })
}

fn chain(path: &Path) -> Result<Vec<tls::Certificate>, Error> {
    let read: Result<Vec<_>, pem::Error> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let chain = read.map_err(|error| unreadable(path, &error))?;
    if chain.is_empty() {
        return Err(refused(path, "has no certificate in it; it should be PEM, the server's first".into()));
    }
    Ok(chain.into_iter().map(|certificate| tls::Certificate::new(certificate.to_vec())).collect())
}

fn unreadable(path: &Path, error: &pem::Error) -> Error {
    let reason = match error {
        pem::Error::Io(error) => format!("cannot be read: {error}"),
        pem::Error::NoItemsFound => "has no private key in it; it should be PEM, without a passphrase".into(),
        other => format!("is not PEM: {other}"),
    };
    refused(path, reason)
}

fn refused(path: &Path, reason: String) -> Error {
    Error::Certificate { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate for `localhost` and its key, as files.
    fn files(dir: &Path) -> CertificateFiles {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let files = CertificateFiles { chain: dir.join("chain.pem"), key: dir.join("key.pem") };
        std::fs::write(&files.chain, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.key_pair.serialize_pem()).unwrap();
        files
    }

    fn complaint(files: &CertificateFiles) -> String {
        config(Some(files)).err().map(|error| error.to_string()).unwrap()
    }

    #[test]
    fn each_mistake_names_its_file_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let good = files(dir.path());
        assert!(config(Some(&good)).is_ok());
        assert!(config(None).is_ok());

        let missing = CertificateFiles { key: dir.path().join("none.pem"), ..good.clone() };
        assert!(complaint(&missing).contains("none.pem cannot be read"), "{}", complaint(&missing));
        let no_key = CertificateFiles { key: good.chain.clone(), ..good.clone() };
        assert!(complaint(&no_key).contains("chain.pem has no private key"), "{}", complaint(&no_key));
        let no_chain = CertificateFiles { chain: good.key.clone(), ..good.clone() };
        assert!(complaint(&no_chain).contains("key.pem has no certificate"), "{}", complaint(&no_chain));

        let elsewhere = tempfile::tempdir().unwrap();
        let foreign = CertificateFiles { key: files(elsewhere.path()).key, ..good.clone() };
        assert!(complaint(&foreign).contains("is not the key of the certificate"), "{}", complaint(&foreign));

        let garbage = dir.path().join("garbage.pem");
        std::fs::write(&garbage, "-----BEGIN PRIVATE KEY-----\n!!!\n-----END PRIVATE KEY-----\n").unwrap();
        let garbage = CertificateFiles { key: garbage, ..good };
        assert!(complaint(&garbage).contains("garbage.pem is not PEM"), "{}", complaint(&garbage));
    }
}
