//! Promises of a leg's handshake.
use super::*;
use rustls::{AlertDescription, ClientConnection, PeerIncompatible, ServerConnection};

fn key() -> SessionKey {
    SessionKey::generate().unwrap()
}

/// Runs a handshake in memory; the error of each side, if any.
fn meet(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> (Option<Error>, Option<Error>) {
    let name = ServerName::try_from("leg.invalid").unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    for _ in 0..4 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() && server_error.is_none() {
            server.read_tls(&mut rest).unwrap();
            server_error = server.process_new_packets().err();
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() && client_error.is_none() {
            client.read_tls(&mut rest).unwrap();
            client_error = client.process_new_packets().err();
        }
    }
    if client_error.is_none() && server_error.is_none() {
        assert!(!client.is_handshaking() && !server.is_handshaking());
        assert_eq!(client.alpn_protocol(), Some(ALPN));
        assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let suite = client.negotiated_cipher_suite().map(|suite| suite.suite());
        assert_eq!(suite, Some(CipherSuite::TLS13_AES_128_GCM_SHA256));
    }
    (client_error, server_error)
}

const REFUSED: Error = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);

#[test]
fn the_right_keys_meet() {
    let (a, b) = (key(), key());
    let client = client_config(&a, &b.public()).unwrap();
    let server = server_config(&b, &a.public()).unwrap();
    assert_eq!(meet(client, server), (None, None));
}

#[test]
fn a_wrong_agent_key_is_refused_by_the_client() {
    let (a, b, other) = (key(), key(), key());
    let client = client_config(&a, &other.public()).unwrap();
    let server = server_config(&b, &a.public()).unwrap();
    let (client, server) = meet(client, server);
    assert_eq!(client, Some(REFUSED));
    assert_eq!(server, Some(Error::AlertReceived(AlertDescription::AccessDenied)));
}

#[test]
fn a_wrong_client_key_is_refused_by_the_agent() {
    let (a, b, other) = (key(), key(), key());
    let client = client_config(&a, &b.public()).unwrap();
    let server = server_config(&b, &other.public()).unwrap();
    let (client, server) = meet(client, server);
    assert_eq!(server, Some(REFUSED));
    assert_eq!(client, Some(Error::AlertReceived(AlertDescription::AccessDenied)));
}

#[test]
fn a_client_without_a_raw_key_is_refused() {
    let (a, b) = (key(), key());
    let provider = Arc::new(provider::default_provider());
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pin::new(&b.public(), &provider).unwrap()))
        .with_no_client_auth();
    let server = server_config(&b, &a.public()).unwrap();
    let (_, server) = meet(Arc::new(client), server);
    let refused = Error::PeerIncompatible(PeerIncompatible::IncorrectCertificateTypeExtension);
    assert!(
        server == Some(refused) || server == Some(Error::NoCertificatesPresented),
        "{server:?}"
    );
}

#[test]
fn a_stored_key_is_the_same_key() {
    let key = key();
    let stored = SessionKey::from_pkcs8(&key.to_pkcs8()).unwrap();
    assert_eq!(stored.public(), key.public());
    let peer = SessionKey::generate().unwrap();
    let client = client_config(&stored, &peer.public()).unwrap();
    let server = server_config(&peer, &key.public()).unwrap();
    assert_eq!(meet(client, server), (None, None));
}

#[test]
fn malformed_keys_are_refused() {
    let own = key();
    assert_eq!(SessionKey::from_pkcs8(b"no key").unwrap_err(), KeyError::Malformed);
    let mut long = own.public();
    long.push(0);
    for peer in [&b""[..], &own.public()[1..], &long] {
        assert_eq!(client_config(&own, peer).unwrap_err(), KeyError::PeerKey);
        assert_eq!(server_config(&own, peer).unwrap_err(), KeyError::PeerKey);
    }
}

#[test]
fn debug_output_holds_no_private_key() {
    let key = key();
    let private = format!("{:?}", key.to_pkcs8());
    let secret = private.trim_matches(['[', ']']);
    assert!(!format!("{key:?}").contains(&secret[secret.len() - 60..]));
}
