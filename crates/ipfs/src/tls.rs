//! TLS as libp2p specifies it, with the cipher first that this processor is quick at.
//!
//! The library's client always offers ChaCha20 before AES. A Go peer takes that as a sign that we lack AES
//! instructions and agrees, and both ends then pay several times as much for each byte. Its configuration is closed, so
//! the side that dials is set up here: the certificate, its parsing and all its checks stay the library's
//! (`libp2p::tls::certificate`, specs `tls/tls.md`). The side that is dialled is the library's whole: it takes
//! the cipher that the other side likes best.
//!
//! Sessions are not resumed: all peers have the same empty name, so a ticket of one would be shown to others.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use futures::io::{AsyncRead, AsyncWrite};
use futures_rustls::TlsConnector;
use libp2p::core::upgrade::{InboundConnectionUpgrade as _, UpgradeInfo as _};
use libp2p::identity::Keypair;
use libp2p::tls::certificate::{self, GenError};
use libp2p::{PeerId, tls};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme, SupportedCipherSuite,
};

/// The name by which TLS is agreed on.
pub(crate) const NAME: &str = "/tls/1.0.0";

/// Both sides.
#[derive(Clone)]
pub(crate) struct Config {
    client: Arc<ClientConfig>,
    server: tls::Config,
}

impl Config {
    pub(crate) fn new(key: &Keypair) -> Result<Self, GenError> {
        let server = tls::Config::new(key)?;
        debug_assert!(server.protocol_info().any(|name| name == NAME));
        Ok(Self { client: Arc::new(client(key)?), server })
    }

    /// Secures a connection that we dialled. Who answered is in the result: the caller compares.
    pub(crate) async fn dialled<C>(self, socket: C) -> io::Result<(PeerId, tls::TlsStream<C>)>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        // An address as the name sends no server name, as the specification wants it.
        let nobody = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let stream = TlsConnector::from(self.client).connect(nobody, socket).await?;
        let peer = match stream.get_ref().1.peer_certificates() {
            Some([one]) => certificate::parse(one).map_err(io::Error::other)?.peer_id(),
            _ => return Err(io::Error::other("the peer showed no certificate, or several")),
        };
        Ok((peer, stream.into()))
    }

    /// Secures a connection that was dialled to us.
    pub(crate) async fn accepted<C>(self, socket: C) -> io::Result<(PeerId, tls::TlsStream<C>)>
    where
        C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.server.upgrade_inbound(socket, NAME).await.map_err(io::Error::other)
    }
}

fn client(key: &Keypair) -> Result<ClientConfig, GenError> {
    // Ours differs from the library's in the order of the ciphers, and in what the module says of sessions.
    let library = tls::make_client_config(key, None)?;
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = ciphers(has_aes()).to_vec();
    let mut config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("these ciphers are those of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SignedByPeer))
        .with_client_cert_resolver(library.client_auth_cert_resolver.clone());
    config.alpn_protocols = vec![b"libp2p".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn ciphers(has_aes: bool) -> [SupportedCipherSuite; 3] {
    let chacha = cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
    let [short, long] = [cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384];
    if has_aes { [short, long, chacha] } else { [chacha, short, long] }
}

/// Whether the processor has instructions for AES.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

/// One certificate, signed by itself, with the extension in which the peer's key vouches for it.
#[derive(Debug)]
struct SignedByPeer;

impl ServerCertVerifier for SignedByPeer {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !others.is_empty() {
            return Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        certificate::parse(certificate)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("libp2p needs TLS 1.3".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        certificate::parse(certificate)?.verify_signature(signed.scheme, message, signed.signature())?;
        Ok(HandshakeSignatureValid::assertion())
    }

    /// What the library can check.
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ED25519,
            SignatureScheme::RSA_PSS_SHA512,
            SignatureScheme::RSA_PSS_SHA384,
            SignatureScheme::RSA_PSS_SHA256,
            SignatureScheme::RSA_PKCS1_SHA512,
            SignatureScheme::RSA_PKCS1_SHA384,
            SignatureScheme::RSA_PKCS1_SHA256,
        ]
    }
}

#[cfg(test)]
mod tests {
    use libp2p::core::upgrade::OutboundConnectionUpgrade as _;
    use rustls::CipherSuite;
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;
    use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};

    use super::*;

    fn socket() -> (Compat<tokio::io::DuplexStream>, Compat<tokio::io::DuplexStream>) {
        let (one, other) = tokio::io::duplex(64 << 10);
        (one.compat(), other.compat())
    }

    fn keys() -> (Keypair, Keypair) {
        (Keypair::generate_ed25519(), Keypair::generate_ed25519())
    }

    #[tokio::test]
    async fn both_sides_learn_who_the_other_is_and_agree_on_the_quick_cipher() {
        let (a, b) = keys();
        let (near, far) = socket();
        let (dialled, accepted) =
            futures::join!(Config::new(&a).unwrap().dialled(near), Config::new(&b).unwrap().accepted(far));
        let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
        assert_eq!(dialled.0, b.public().to_peer_id());
        assert_eq!(accepted.0, a.public().to_peer_id());
        let tls::TlsStream::Client(stream) = dialled.1 else { panic!("we dialled") };
        let agreed = stream.get_ref().1.negotiated_cipher_suite().unwrap().suite();
        let quick = if has_aes() {
            CipherSuite::TLS13_AES_128_GCM_SHA256
        } else {
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        };
        assert_eq!(agreed, quick);
    }

    #[test]
    fn without_aes_instructions_chacha_comes_first() {
        assert_eq!(ciphers(false)[0].suite(), CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
        assert_eq!(ciphers(true)[2].suite(), CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    }

    #[tokio::test]
    async fn a_plain_library_peer_is_understood_in_both_directions() {
        let (a, b) = keys();
        let library = tls::Config::new(&b).unwrap();
        let (near, far) = socket();
        let (ours, theirs) = futures::join!(
            Config::new(&a).unwrap().dialled(near),
            library.clone().upgrade_inbound(far, NAME)
        );
        assert_eq!(ours.unwrap().0, b.public().to_peer_id());
        assert_eq!(theirs.unwrap().0, a.public().to_peer_id());
        let (near, far) = socket();
        let (ours, theirs) =
            futures::join!(Config::new(&a).unwrap().accepted(far), library.upgrade_outbound(near, NAME));
        assert_eq!(ours.unwrap().0, b.public().to_peer_id());
        assert_eq!(theirs.unwrap().0, a.public().to_peer_id());
    }

    /// Shows whatever it is told to.
    #[derive(Debug)]
    struct Shown(Arc<CertifiedKey>);

    impl ResolvesServerCert for Shown {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
    }

    /// What we say of a server that shows these certificates and signs with this key.
    async fn refusal(certificates: Vec<CertificateDer<'static>>, key: &rcgen::KeyPair) -> String {
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let key = aws_lc_rs::sign::any_ecdsa_type(&key).unwrap();
        let mut server = rustls::ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Shown(CertifiedKey::new(certificates, key).into())));
        server.alpn_protocols = vec![b"libp2p".to_vec()];
        let (near, far) = socket();
        let accept = futures_rustls::TlsAcceptor::from(Arc::new(server)).accept(far);
        let (ours, _) = futures::join!(Config::new(&keys().0).unwrap().dialled(near), accept);
        ours.map(|(peer, _)| peer).unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_certificate_that_no_peer_vouches_for_is_refused() {
        let key = rcgen::KeyPair::generate().unwrap();
        let plain = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let said = refusal(vec![plain.der().clone()], &key).await;
        assert!(said.contains("invalid peer certificate"), "{said}");
    }

    #[tokio::test]
    async fn another_peers_certificate_without_its_key_is_refused() {
        let (copied, _) = certificate::generate(&keys().0).unwrap();
        let said = refusal(vec![copied], &rcgen::KeyPair::generate().unwrap()).await;
        assert!(said.contains("BadSignature"), "{said}");
    }

    #[tokio::test]
    async fn two_certificates_are_refused() {
        let (first, key) = certificate::generate(&keys().0).unwrap();
        let key = rcgen::KeyPair::try_from(key.secret_der()).unwrap();
        let said = refusal(vec![first.clone(), first], &key).await;
        assert!(said.contains("ApplicationVerificationFailure"), "{said}");
    }
}
