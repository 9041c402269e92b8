//! Who is at the other end of a leg: TLS 1.3 with raw public keys (RFC 7250), pinned at both ends.
//!
//! The keys travel over the links to the broker; a leg is refused unless the peer proves exactly the expected one.
//! There are no certificates, no names and no expiry to check: the pin is the identity, and it lives as long as the
//! session. The gateway in between sees ciphertext, and one that lies can only refuse service.
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs as provider};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer,
    UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, ServerConfig, SignatureScheme, SupportedCipherSuite,
};

/// Application protocol of every leg (RFC 7301).
pub const ALPN: &[u8] = b"switchback/1";

/// A key that could not be made, read or used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The random source or the library failed; trying again may help.
    #[error("a session key could not be generated")]
    Generate,
    /// Not an Ed25519 private key in PKCS#8 DER (RFC 8410).
    #[error("not an Ed25519 key in PKCS#8 DER")]
    Malformed,
    /// The peer's key is not an Ed25519 SubjectPublicKeyInfo (RFC 8410, 44 bytes).
    #[error("the peer's key is not an Ed25519 SubjectPublicKeyInfo")]
    PeerKey,
}

/// An Ed25519 key that identifies one end of a session's legs. `Debug` shows the public half only.
pub struct SessionKey {
    pkcs8: PrivatePkcs8KeyDer<'static>,
    spki: Vec<u8>,
}

impl Clone for SessionKey {
    fn clone(&self) -> Self {
        Self { pkcs8: self.pkcs8.clone_key(), spki: self.spki.clone() }
    }
}

impl SessionKey {
    /// A fresh key.
    ///
    /// # Errors
    /// [`KeyError::Generate`] when the random source fails.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Generate)?;
        Self::from_pair(&pair).ok_or(KeyError::Generate)
    }

    /// Reads a key that [`Self::to_pkcs8`] wrote.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] when `der` is not an Ed25519 key in PKCS#8.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let pair =
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| KeyError::Malformed)?;
        Self::from_pair(&pair).ok_or(KeyError::Malformed)
    }

    /// The private key as PKCS#8 DER, for a file that only its owner may read.
    #[must_use]
    pub fn to_pkcs8(&self) -> Vec<u8> {
        self.pkcs8.secret_pkcs8_der().to_vec()
    }

    /// The public key as SubjectPublicKeyInfo DER: what the peer pins.
    #[must_use]
    pub fn public(&self) -> Vec<u8> {
        self.spki.clone()
    }

    fn from_pair(pair: &Ed25519KeyPair) -> Option<Self> {
        let pkcs8: Pkcs8V1Der<'static> = pair.as_der().ok()?;
        let spki: PublicKeyX509Der<'static> = pair.public_key().as_der().ok()?;
        Some(Self { pkcs8: pkcs8.as_ref().to_vec().into(), spki: spki.as_ref().to_vec() })
    }

    fn certified(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, KeyError> {
        let private = PrivateKeyDer::Pkcs8(self.pkcs8.clone_key());
        let key =
            provider.key_provider.load_private_key(private).map_err(|_| KeyError::Malformed)?;
        Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(self.spki.clone())], key)))
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionKey").field("public", &self.spki).finish_non_exhaustive()
    }
}

/// TLS for the end that dials the session: proves `own`, accepts `peer_spki` and nothing else.
///
/// The server name given to the handshake is free for other uses (it carries the gateway's ticket).
///
/// # Errors
/// [`KeyError::PeerKey`] when `peer_spki` is not an Ed25519 SubjectPublicKeyInfo; [`KeyError::Malformed`] when `own`
/// cannot be loaded.
pub fn client_config(own: &SessionKey, peer_spki: &[u8]) -> Result<Arc<ClientConfig>, KeyError> {
    let provider = Arc::new(tls_provider());
    let pin = Arc::new(Pin::new(peer_spki, &provider)?);
    let certified = own.certified(&provider)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|_| KeyError::Malformed)?
        .dangerous()
        .with_custom_certificate_verifier(pin)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// [`client_config`] for QUIC (RFC 9001). No early data, and no session is resumed: keys are proved every time.
///
/// # Errors
/// As [`client_config`].
pub fn quic_client_config(
    own: &SessionKey,
    peer_spki: &[u8],
) -> Result<Arc<QuicClientConfig>, KeyError> {
    let config = client_config(own, peer_spki)?;
    QuicClientConfig::try_from(config).map(Arc::new).map_err(|_| KeyError::Malformed)
}

/// TLS for the end that is dialled: proves `own`, demands `peer_spki` and nothing else. Sends no session tickets: a
/// resumed handshake would skip the proof of the client's key.
///
/// # Errors
/// As [`client_config`].
pub fn server_config(own: &SessionKey, peer_spki: &[u8]) -> Result<Arc<ServerConfig>, KeyError> {
    let provider = Arc::new(tls_provider());
    let pin = Arc::new(Pin::new(peer_spki, &provider)?);
    let certified = own.certified(&provider)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|_| KeyError::Malformed)?
        .with_client_cert_verifier(pin)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// [`server_config`] for QUIC (RFC 9001).
///
/// # Errors
/// As [`client_config`].
pub fn quic_server_config(
    own: &SessionKey,
    peer_spki: &[u8],
) -> Result<Arc<QuicServerConfig>, KeyError> {
    let config = server_config(own, peer_spki)?;
    QuicServerConfig::try_from(config).map(Arc::new).map_err(|_| KeyError::Malformed)
}

/// AES-128-GCM first, which every TLS 1.3 end has (RFC 8446 section 9.1): ten rounds instead of fourteen, and the cipher is
/// the largest single cost of a byte. It is no weaker than the X25519 of the key exchange.
fn tls_provider() -> CryptoProvider {
    let mut provider = provider::default_provider();
    let later =
        |suite: &SupportedCipherSuite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(later);
    provider
}

/// Accepts one public key, and the signatures it makes.
#[derive(Debug)]
struct Pin {
    spki: Vec<u8>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// SubjectPublicKeyInfo of Ed25519 up to the key's 32 bytes (RFC 8410 section 4).
const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl Pin {
    fn new(spki: &[u8], provider: &CryptoProvider) -> Result<Self, KeyError> {
        if spki.len() != ED25519_SPKI_PREFIX.len() + 32 || !spki.starts_with(&ED25519_SPKI_PREFIX) {
            return Err(KeyError::PeerKey);
        }
        Ok(Self { spki: spki.to_vec(), algorithms: provider.signature_verification_algorithms })
    }

    /// Public keys are public: the comparison need not take constant time.
    fn check(
        &self,
        presented: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        if presented.as_ref() == self.spki && rest.is_empty() {
            return Ok(());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(key.as_ref());
        rustls::crypto::verify_tls13_signature_with_raw_key(
            message,
            &spki,
            signed,
            &self.algorithms,
        )
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Pin {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
