//! The broker's certificate: its own or the operator's, and the pin that invitations carry.
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::digest;
use data_encoding::BASE64URL_NOPAD;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::broker::certificate::Certificate;
use crate::broker::data::{DataDir, read_bounded};
use crate::code::{Code, Fault};

const CERTIFICATE_FILE: &str = "tls.crt";
const KEY_FILE: &str = "tls.key";

/// An operator's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM chain, the server's certificate first.
    pub cert: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
}

/// What the broker proves itself with.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) tls: Arc<ServerConfig>,
    /// What `tls` shows; may be replaced by another of the same key.
    pub(crate) certificate: Arc<Certificate>,
    /// SHA-256 of the certificate's SubjectPublicKeyInfo, base64url.
    pub(crate) pin: String,
}

impl Identity {
    /// Takes the operator's files; else the certificate in the data directory; else makes one for `hosts` there.
    ///
    /// # Errors
    /// [`Code::CertificateUnusable`] for the operator's files, [`Code::DataCorrupt`] or [`Code::DataDirUnusable`] for
    /// our own.
    pub(crate) fn load(
        data: &DataDir,
        files: Option<&TlsFiles>,
        hosts: &[String],
    ) -> Result<Self, Fault> {
        if let Some(files) = files {
            return Self::of_files(files);
        }
        let (certificate, key) = match (data.read(CERTIFICATE_FILE)?, data.read(KEY_FILE)?) {
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(_), None) => {
                return Err(Code::DataCorrupt.because(format!("{KEY_FILE} is missing")));
            }
            // The key is written first: without a certificate nobody has seen it yet.
            (None, _) => make(data, hosts)?,
        };
        Self::from_pem(&certificate, &key).map_err(|error| {
            Code::DataCorrupt.because(format!("{CERTIFICATE_FILE} or {KEY_FILE}: {error}"))
        })
    }

    /// What an operator's files hold.
    ///
    /// # Errors
    /// [`Code::CertificateUnusable`].
    pub(crate) fn of_files(files: &TlsFiles) -> Result<Self, Fault> {
        let read = |path: &PathBuf| {
            read_bounded(path).map_err(|error| {
                Code::CertificateUnusable.because(format!("{}: {error}", path.display()))
            })
        };
        Self::from_pem(&read(&files.cert)?, &read(&files.key)?)
            .map_err(|error| Code::CertificateUnusable.because(error))
    }

    fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, String> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("the certificate is no PEM: {error}"))?;
        if chain.is_empty() {
            return Err("the certificate file holds no certificate".into());
        }
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| format!("the key is no PEM private key: {error}"))?;
        let provider = Arc::new(provider::default_provider());
        let certified = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|error| format!("certificate and key do not fit: {error}"))?;
        let pin = pin(&certified).ok_or("the key's public half cannot be told")?;
        let certificate = Arc::new(Certificate::new(Arc::new(certified)));
        let tls =
            server_config(provider, certificate.clone()).map_err(|error| error.to_string())?;
        Ok(Self { tls, certificate, pin })
    }
}

fn server_config(
    provider: Arc<CryptoProvider>,
    certificate: Arc<Certificate>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    // WebSocket links need HTTP/1.1's upgrade, and nothing here gains from HTTP/2.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn pin(certified: &CertifiedKey) -> Option<String> {
    let spki = certified.key.public_key()?;
    Some(BASE64URL_NOPAD.encode(digest::digest(&digest::SHA256, spki.as_ref()).as_ref()))
}

/// Makes a key and a certificate for `hosts`, and keeps them.
fn make(data: &DataDir, hosts: &[String]) -> Result<(Vec<u8>, Vec<u8>), Fault> {
    let failed = |error: rcgen::Error| Code::Internal.because(format!("certificate: {error}"));
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend(hosts.iter().filter(|host| !host.is_empty()).cloned());
    names.sort();
    names.dedup();
    let mut params = rcgen::CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Switchback broker");
    // Endpoints pin the key, so the dates protect nobody; an expiry would only break old invitations.
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    let (certificate, key) = (certificate.pem().into_bytes(), key.serialize_pem().into_bytes());
    data.write(KEY_FILE, &key)?;
    data.write(CERTIFICATE_FILE, &certificate)?;
    Ok((certificate, key))
}

/// Whether a host can stand in a certificate and in a URL: an IP address or a DNS name.
pub(crate) fn is_host(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok()
        || (host.len() <= 253
            && !host.is_empty()
            && host.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_made_certificate_is_kept_and_keeps_its_pin() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::open(temp.path()).unwrap();
        let hosts = ["gate.example".to_owned(), "192.0.2.1".to_owned()];
        let first = Identity::load(&data, None, &hosts).unwrap();
        let again = Identity::load(&data, None, &["other.example".into()]).unwrap();
        assert_eq!(first.pin, again.pin);
        assert_eq!(first.pin.len(), 43);
        fs::write(data.file(KEY_FILE), "garbage").unwrap();
        assert_eq!(Identity::load(&data, None, &[]).err().unwrap().code, Code::DataCorrupt);
    }

    #[test]
    fn an_operators_files_must_parse_and_belong_together() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::open(temp.path()).unwrap();
        let make = |name: &str| {
            let made = rcgen::generate_simple_self_signed(vec!["gate.example".into()]).unwrap();
            let files = TlsFiles {
                cert: temp.path().join(format!("{name}.crt")),
                key: temp.path().join(format!("{name}.key")),
            };
            fs::write(&files.cert, made.cert.pem()).unwrap();
            fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
            files
        };
        let (one, other) = (make("one"), make("other"));
        assert!(Identity::load(&data, Some(&one), &[]).is_ok());
        let mixed = TlsFiles { cert: one.cert.clone(), key: other.key };
        let swapped = TlsFiles { cert: one.key.clone(), key: one.cert.clone() };
        let missing = TlsFiles { cert: temp.path().join("none"), key: one.key.clone() };
        for files in [mixed, swapped, missing] {
            let fault = Identity::load(&data, Some(&files), &[]).err().unwrap();
            assert_eq!(fault.code, Code::CertificateUnusable, "{fault}");
        }
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        for good in ["gate.example", "localhost", "192.0.2.1", "2001:db8::1"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", "a b", "a..b", "host/path", "[::1]"] {
            assert!(!is_host(bad), "{bad}");
        }
    }
}
