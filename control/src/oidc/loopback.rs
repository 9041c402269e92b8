//! Where the browser comes back to: one page on 127.0.0.1, for one answer (RFC 8252 section 7.3).
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::flow::Challenge;
use crate::code::{Code, Fault};
use crate::secret::Secret;

const PATH: &str = "/callback";
/// A browser opens a few connections ahead; other programs of this machine may connect too.
const CONNECTIONS_MAX: usize = 16;
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Time for the page to leave.
const FAREWELL: Duration = Duration::from_millis(300);

pub(super) struct Loopback {
    listener: TcpListener,
    pub(super) redirect: String,
}

type Sender = Arc<Mutex<Option<oneshot::Sender<Result<Secret, Fault>>>>>;

impl Loopback {
    pub(super) async fn open() -> Result<Self, Fault> {
        let failed = |error: std::io::Error| {
            Code::AddressUnavailable.because(format!("no port on 127.0.0.1: {error}"))
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, redirect: format!("http://{address}{PATH}") })
    }

    /// Waits for the browser with the answer to the challenge. Whatever else comes is turned away.
    pub(super) async fn answer(
        self,
        challenge: Arc<Challenge>,
        issuer: &str,
    ) -> Result<Secret, Fault> {
        let (sender, mut answer) = oneshot::channel();
        let sender: Sender = Arc::new(Mutex::new(Some(sender)));
        let mut connections = JoinSet::new();
        let answer = loop {
            let room = connections.len() < CONNECTIONS_MAX;
            let stream = tokio::select! {
                answer = &mut answer => break answer,
                Some(_) = connections.join_next() => continue,
                Ok((stream, _)) = self.listener.accept(), if room => stream,
            };
            let (challenge, sender) = (challenge.clone(), sender.clone());
            let issuer = issuer.to_owned();
            let service = service_fn(move |request| {
                let page = page(&request, &challenge, &issuer, &sender);
                async move { Ok::<_, Infallible>(page) }
            });
            connections.spawn(async move {
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_DEADLINE)
                    .serve_connection(TokioIo::new(stream), service);
                drop(served.await);
            });
        };
        // The browser shall see its page.
        let pages = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FAREWELL, pages).await;
        answer.unwrap_or_else(|_| Err(Code::Internal.because("the answer was lost")))
    }
}

fn page(
    request: &Request<Incoming>,
    challenge: &Challenge,
    issuer: &str,
    sender: &Sender,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET || request.uri().path() != PATH {
        return html(StatusCode::NOT_FOUND, "Nothing here", "");
    }
    let Some(code) = challenge.code(request.uri().query().unwrap_or_default(), issuer) else {
        let text = "This is not the answer that was waited for. Go back to the terminal.";
        return html(StatusCode::BAD_REQUEST, "Not signed in", text);
    };
    let page = match &code {
        Ok(_) => {
            html(StatusCode::OK, "Done", "You may close this window and go back to the terminal.")
        }
        Err(_) => html(StatusCode::OK, "Not signed in", "The terminal says why."),
    };
    let sender = sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(sender) = sender {
        // Who waited may have given up.
        let _ = sender.send(code);
    }
    page
}

/// Fixed text: nothing of the request is in it.
fn html(status: StatusCode, title: &str, text: &str) -> Response<Full<Bytes>> {
    let page = format!(
        "<!doctype html><meta charset=utf-8><title>Switchback: {title}</title>\
         <body style=\"font-family:sans-serif;margin:4em\"><h1>{title}</h1><p>{text}</p>"
    );
    let mut response = Response::new(Full::new(page.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (CONNECTION, "close"),
    ] {
        headers.insert(name, hyper::header::HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(redirect: &str, path: &str) -> String {
        let address = redirect.strip_prefix("http://").unwrap().split('/').next().unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn strangers_are_turned_away_until_the_answer_comes() {
        let loopback = Loopback::open().await.unwrap();
        let redirect = loopback.redirect.clone();
        let challenge = Arc::new(Challenge::new([[1; 32], [2; 32], [3; 32]]));
        let state = challenge.state.clone();
        let waits =
            tokio::spawn(async move { loopback.answer(challenge, "https://id.example").await });
        assert!(get(&redirect, "/favicon.ico").await.starts_with("HTTP/1.1 404"));
        assert!(get(&redirect, "/callback?code=c&state=guess").await.starts_with("HTTP/1.1 400"));
        let page = get(&redirect, &format!("/callback?code=c0de&state={state}")).await;
        assert!(page.starts_with("HTTP/1.1 200") && page.contains("close this window"));
        assert_eq!(waits.await.unwrap().unwrap().reveal(), "c0de");
    }
}
