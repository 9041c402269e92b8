//! One request to a provider: HTTPS by the system's roots, bounded in bytes and time, and no redirect followed: where a
//! provider's endpoints are it says in its discovery document, and a code or token goes nowhere else.
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::endpoint::Endpoint;
use crate::code::{Code, Fault};
use crate::dial::tcp;

/// From the dial to the last byte. Providers answer within a second; people wait for it.
const DEADLINE: Duration = Duration::from_secs(8);
/// Largest answer. Discovery documents have 2 to 6 KiB, key sets with certificates 10.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// An HTTPS client.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    tls: Arc<ClientConfig>,
    deadline: Duration,
}

/// What a provider answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Http {
    /// Trusts the certificates in `ca`, else the system's. Blocks: reads files.
    ///
    /// # Errors
    /// [`Code::CertificateUnusable`].
    pub(crate) fn new(ca: Option<&Path>) -> Result<Self, Fault> {
        let roots = match ca {
            Some(path) => roots_of(path)?,
            None => system_roots(),
        };
        Ok(Self { tls: Arc::new(web_config(roots)?), deadline: DEADLINE })
    }

    #[cfg(test)]
    pub(crate) fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The body of what is there; an error in words otherwise.
    pub(crate) async fn get(&self, from: &Endpoint) -> Result<Bytes, String> {
        let reply = self.send(from, Method::GET, "").await?;
        match reply.status {
            StatusCode::OK => Ok(reply.body),
            status => Err(format!("{from} answered HTTP {status}")),
        }
    }

    /// Posts a form, and answers whatever status came.
    pub(crate) async fn post(&self, to: &Endpoint, form: &[(&str, &str)]) -> Result<Reply, String> {
        self.send(to, Method::POST, &encoded(form)).await
    }

    async fn send(&self, to: &Endpoint, method: Method, form: &str) -> Result<Reply, String> {
        let asked = timeout(self.deadline, self.exchange(to, method, form)).await;
        asked.unwrap_or_else(|_| Err(format!("{to} did not answer within {:?}", self.deadline)))
    }

    async fn exchange(&self, to: &Endpoint, method: Method, form: &str) -> Result<Reply, String> {
        let broken = |error: &dyn std::fmt::Display| format!("{to}: {error}");
        let request = Request::builder()
            .method(method)
            .uri(&to.target)
            .header(HOST, to.host_port())
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::new(Bytes::from(form.to_owned())))
            .map_err(|error| broken(&error))?;
        let stream = tcp::connect(&to.host_port(), self.deadline).await;
        let stream = stream.map_err(|error| broken(&error))?;
        if !to.tls {
            return ask(stream, request).await.map_err(|error| format!("{to}: {error}"));
        }
        let name = ServerName::try_from(to.host.clone()).map_err(|error| broken(&error))?;
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await;
        let stream = stream.map_err(|error| broken(&error))?;
        ask(stream, request).await.map_err(|error| format!("{to}: {error}"))
    }
}

fn encoded(form: &[(&str, &str)]) -> String {
    let mut body = form_urlencoded::Serializer::new(String::new());
    body.extend_pairs(form).finish()
}

async fn ask<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Reply, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shaken = http1::Builder::new().max_headers(64).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| error.to_string())?;
    // The connection lives as long as this request.
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| match error.is::<LengthLimitError>() {
            true => format!("the answer exceeds {ANSWER_BYTES_MAX} bytes"),
            false => error.to_string(),
        })?;
        Ok(Reply { status, body: body.to_bytes() })
    };
    tokio::pin!(exchange);
    tokio::select! {
        reply = &mut exchange => return reply,
        _ = connection => {}
    }
    exchange.await
}

/// TLS towards servers whose certificates lead to these roots.
pub(crate) fn web_config(roots: RootCertStore) -> Result<ClientConfig, Fault> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Code::Internal.because(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// The certificates that this machine trusts, read once (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others).
pub(crate) fn system_roots() -> RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    let load = || {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        tracing::debug!(added, "the system's certificates are read");
        roots
    };
    ROOTS.get_or_init(load).clone()
}

fn roots_of(path: &Path) -> Result<RootCertStore, Fault> {
    let unusable = |error: &dyn std::fmt::Display| {
        Code::CertificateUnusable.because(format!("{}: {error}", path.display()))
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unusable(&error))? {
        let certificate = certificate.map_err(|error| unusable(&error))?;
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    if roots.is_empty() {
        return Err(unusable(&"no certificate in it"));
    }
    Ok(roots)
}
