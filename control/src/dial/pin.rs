//! Trust in the broker: its public key is the pinned one, whatever its certificate says besides.
//!
//! The SHA-256 of the certificate's SubjectPublicKeyInfo must equal the pin, and the handshake's signature must
//! verify with that key. Name, issuer and expiry are not checked: they exist to find out whether a key is the
//! right one, and the pin already says which key is.
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible, SignatureScheme,
};

use crate::code::{Code, Fault};
use crate::oidc::http::{system_roots, web_config};

/// TLS towards a broker with this pin, SHA-256 of its SubjectPublicKeyInfo in base64url. Without one, its certificate must be
/// one that this machine trusts, for its name.
///
/// # Errors
/// [`Code::InviteInvalid`] if the pin is no SHA-256 in base64url.
pub(super) fn client_config(pin: &str) -> Result<ClientConfig, Fault> {
    if pin.is_empty() {
        let mut config = web_config(system_roots())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        return Ok(config);
    }
    let pin = BASE64URL_NOPAD
        .decode(pin.as_bytes())
        .ok()
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
        .ok_or_else(|| Code::InviteInvalid.because("the string's pin is no SHA-256 digest"))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(PinVerifier { pin, provider: provider.clone() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Code::Internal.because(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct PinVerifier {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let key = ParsedCertificate::try_from(end_entity)?.subject_public_key_info();
        let digest = sha256(&key);
        if digest.as_ref() == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn sha256(bytes: &[u8]) -> ::aws_lc_rs::digest::Digest {
    ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, bytes)
}
