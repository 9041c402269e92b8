//! The calling side of the broker's HTTP API: one connection, one request at a time, every answer typed.
mod events;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio::time::timeout;

pub use self::events::{EventStream, Told};
use super::{
    AgentView, AuditRecord, ErrorBody, EstimateView, ExplainPolicy, ExplainView, GatewayView,
    GrantView, IssuedToken, NewMessage, NewTestPairs, NewToken, PolicyExplained, PolicyStatus,
    ResourceView, SessionView, TestPair, TokenView, WhoAmI,
};
use crate::code::{Code, Fault};
use crate::dial::{BrokerAddress, connect_broker};
use crate::invite::Invite;
use crate::wire::SessionId;

/// From the dial to the last byte of the answer. A broker answers in milliseconds; a satellite path needs four round
/// trips of 0.6 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest answer: 65,536 sessions of about 800 bytes each.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Calls a broker as the user of an [`Invite`].
#[derive(Debug)]
pub struct ApiClient {
    invite: Invite,
    sender: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl ApiClient {
    /// Calls the broker of this login string. Dials on the first request.
    #[must_use]
    pub fn new(invite: Invite) -> Self {
        Self { invite, sender: Mutex::new(None) }
    }

    /// Who the token belongs to.
    ///
    /// # Errors
    /// The broker's refusal; [`Code::BrokerUnreachable`] and [`Code::BrokerPinMismatch`] as for every call.
    pub async fn whoami(&self) -> Result<WhoAmI, Fault> {
        self.get("/v1/whoami").await
    }

    /// The feed.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn resources(&self) -> Result<Vec<ResourceView>, Fault> {
        self.get("/v1/resources").await
    }

    /// Every agent that the broker remembers.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn agents(&self) -> Result<Vec<AgentView>, Fault> {
        self.get("/v1/agents").await
    }

    /// Has an agent get no new sessions, or some again.
    ///
    /// # Errors
    /// The broker's refusal, [`Code::AgentUnknown`] among them.
    pub async fn drain(&self, agent: &str, draining: bool) -> Result<(), Fault> {
        let method = if draining { Method::PUT } else { Method::DELETE };
        self.send(method, &format!("/v1/agents/{}/drain", segment(agent)), NOTHING).await
    }

    /// Own sessions; all of them for an administrator.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn sessions(&self) -> Result<Vec<SessionView>, Fault> {
        self.get("/v1/sessions").await
    }

    /// One session.
    ///
    /// # Errors
    /// The broker's refusal, [`Code::SessionUnknown`] among them.
    pub async fn session(&self, id: &SessionId) -> Result<SessionView, Fault> {
        self.get(&format!("/v1/sessions/{}", segment(&id.0))).await
    }

    /// Why a session takes the way it takes. Its ends are asked, which takes a round trip, and up to 3 s if one of them
    /// does not answer.
    ///
    /// # Errors
    /// The broker's refusal, [`Code::SessionUnknown`] among them.
    pub async fn explain(&self, id: &SessionId) -> Result<ExplainView, Fault> {
        self.get(&format!("/v1/sessions/{}/explain", segment(&id.0))).await
    }

    /// Ends a session.
    ///
    /// # Errors
    /// The broker's refusal, [`Code::SessionUnknown`] among them.
    pub async fn kill(&self, id: &SessionId) -> Result<(), Fault> {
        self.send(Method::DELETE, &format!("/v1/sessions/{}", segment(&id.0)), NOTHING).await
    }

    /// Every gateway.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn gateways(&self) -> Result<Vec<GatewayView>, Fault> {
        self.get("/v1/gateways").await
    }

    /// Has the sessions of a gateway move, or lets some come again. For administrators.
    ///
    /// # Errors
    /// The broker's refusal, [`Code::GatewayUnknown`] among them.
    pub async fn drain_gateway(&self, name: &str, drain: bool) -> Result<(), Fault> {
        let method = if drain { Method::PUT } else { Method::DELETE };
        self.send(method, &format!("/v1/gateways/{}/drain", segment(name)), NOTHING).await
    }

    /// How far the gateways are from the agents of the feed's resources.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn estimate(&self) -> Result<EstimateView, Fault> {
        self.get("/v1/estimate").await
    }

    /// Shows a message to the user of a session.
    ///
    /// # Errors
    /// The broker's refusal, [`Code::ClientOffline`] among them.
    pub async fn message(&self, id: &SessionId, text: &str) -> Result<(), Fault> {
        let path = format!("/v1/sessions/{}/message", segment(&id.0));
        self.send(Method::POST, &path, Some(&NewMessage { text: text.to_owned() })).await
    }

    /// Pauses a session, or (`held` false) lets it go on.
    ///
    /// # Errors
    /// The broker's refusal, [`Code::AgentOffline`] among them.
    pub async fn hold(&self, id: &SessionId, held: bool) -> Result<(), Fault> {
        let verb = if held { "pause" } else { "resume" };
        self.send(Method::POST, &format!("/v1/sessions/{}/{verb}", segment(&id.0)), NOTHING).await
    }

    /// Every token.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn tokens(&self) -> Result<Vec<TokenView>, Fault> {
        self.get("/v1/tokens").await
    }

    /// Mints a token.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn issue(&self, token: &NewToken) -> Result<IssuedToken, Fault> {
        read(&self.call(Method::POST, "/v1/tokens", Some(token)).await?)
    }

    /// Revokes a token or an enrolment by its id; of a join string also the enrolments that were made with it, if so wished.
    ///
    /// # Errors
    /// The broker's refusal, [`Code::SubjectUnknown`] among them.
    pub async fn revoke(&self, id: &str, enrolments: bool) -> Result<(), Fault> {
        let query = if enrolments { "?enrolments=true" } else { "" };
        self.send(Method::DELETE, &format!("/v1/tokens/{}{query}", segment(id)), NOTHING).await
    }

    /// Every grant.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn grants(&self) -> Result<Vec<GrantView>, Fault> {
        self.get("/v1/grants").await
    }

    /// Lets a user use a resource.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn add_grant(&self, grant: &GrantView) -> Result<(), Fault> {
        self.send(Method::PUT, "/v1/grants", Some(grant)).await
    }

    /// Takes a grant back.
    ///
    /// # Errors
    /// The broker's refusal, [`Code::SubjectUnknown`] among them.
    pub async fn remove_grant(&self, grant: &GrantView) -> Result<(), Fault> {
        self.send(Method::DELETE, "/v1/grants", Some(grant)).await
    }

    /// Mints test pairs.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn test_pairs(&self, wanted: NewTestPairs) -> Result<Vec<TestPair>, Fault> {
        read(&self.call(Method::POST, "/v1/test-pairs", Some(&wanted)).await?)
    }

    /// The policies that hold. For administrators.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn policy(&self) -> Result<PolicyStatus, Fault> {
        self.get("/v1/policy").await
    }

    /// What the broker's policies would say. For administrators.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn explain_policy(&self, asked: &ExplainPolicy) -> Result<PolicyExplained, Fault> {
        read(&self.call(Method::POST, "/v1/policy/explain", Some(asked)).await?)
    }

    /// The latest decisions, oldest first. For administrators.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn audit(
        &self,
        since_ms: u64,
        user: Option<&str>,
        limit: u32,
    ) -> Result<Vec<AuditRecord>, Fault> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("since_ms", &since_ms.to_string());
        query.append_pair("limit", &limit.to_string());
        if let Some(user) = user {
            query.append_pair("user", user);
        }
        self.get(&format!("/v1/audit?{}", query.finish())).await
    }

    /// `GET /metrics`, Prometheus text. For administrators.
    ///
    /// # Errors
    /// The broker's refusal, or what kept the request from it.
    pub async fn metrics(&self) -> Result<String, Fault> {
        let text = self.call(Method::GET, "/metrics", NOTHING).await?;
        String::from_utf8(text.into())
            .map_err(|_| Code::MessageMalformed.because("the metrics are no UTF-8 text"))
    }

    pub(super) async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Fault> {
        read(&self.call(Method::POST, path, Some(body)).await?)
    }

    pub(super) async fn order(&self, path: &str) -> Result<(), Fault> {
        self.send(Method::POST, path, NOTHING).await
    }

    pub(super) async fn order_with<B: Serialize>(&self, path: &str, body: &B) -> Result<(), Fault> {
        self.send(Method::POST, path, Some(body)).await
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Fault> {
        read(&self.call(Method::GET, path, NOTHING).await?)
    }

    async fn send<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<(), Fault> {
        self.call(method, path, body).await.map(drop)
    }

    async fn call<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Bytes, Fault> {
        let request = self.request(method, path, body)?;
        timeout(REQUEST_TIMEOUT, self.exchange(request)).await.unwrap_or_else(|_| {
            let text = format!("{} did not answer within {REQUEST_TIMEOUT:?}", self.invite.url);
            Err(Code::BrokerUnreachable.because(text))
        })
    }

    fn request<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Request<Full<Bytes>>, Fault> {
        let content = body
            .map_or_else(|| Ok(Vec::new()), serde_json::to_vec)
            .map_err(|error| Code::Internal.because(format!("cannot form a request: {error}")))?;
        let host = BrokerAddress::of(&self.invite)?.host_port();
        let mut request = Request::builder().method(method).uri(path).header(HOST, host);
        // Who has yet to sign in has no token.
        if !self.invite.token.reveal().is_empty() {
            let bearer = format!("Bearer {}", self.invite.token.reveal());
            request = request.header(AUTHORIZATION, bearer);
        }
        request
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(content.into()))
            .map_err(|_| Code::InviteInvalid.because("the login string holds no usable token"))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Bytes, Fault> {
        let mut kept = self.sender.lock().await;
        let mut sender = match alive(kept.take()).await {
            Some(sender) => sender,
            None => open(connect_broker(&self.invite).await?).await?,
        };
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let answer = collect(answer).await?;
        *kept = Some(sender);
        Ok(answer)
    }
}

/// No body, of no particular type.
const NOTHING: Option<&()> = None;

/// The kept connection, unless the broker has closed it meanwhile.
async fn alive(kept: Option<SendRequest<Full<Bytes>>>) -> Option<SendRequest<Full<Bytes>>> {
    let mut sender = kept?;
    sender.ready().await.ok().map(|()| sender)
}

async fn open<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, Fault>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    // Ends with the connection; the sender reports what went wrong.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

async fn collect(answer: Response<Incoming>) -> Result<Bytes, Fault> {
    let status = answer.status();
    let body =
        Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                Code::MessageTooLarge.because("the broker's answer exceeds 64 MiB")
            } else {
                broken(&*error)
            }
        })?;
    let body = body.to_bytes();
    if status.is_success() { Ok(body) } else { Err(refusal(status, &body)) }
}

/// The fault in a refusal's body, as well as it can be read.
fn refusal(status: StatusCode, body: &[u8]) -> Fault {
    if let Ok(ErrorBody { error }) = serde_json::from_slice(body) {
        return error.code.because(error.message);
    }
    // A newer broker may know codes that we do not.
    let text = serde_json::from_slice::<serde_json::Value>(body).ok().and_then(|value| {
        let field = |name| value["error"][name].as_str();
        Some(format!("{}: {}", field("code")?, field("message")?))
    });
    match text {
        Some(text) => Code::ProtocolVersion.because(format!("the broker refused with {text}")),
        None => Code::BrokerUnreachable
            .because(format!("the broker answered HTTP {status} without a reason")),
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(body)
        .map_err(|error| Code::MessageMalformed.because(format!("the broker's answer: {error}")))
}

fn broken(error: &dyn std::fmt::Display) -> Fault {
    Code::BrokerUnreachable.because(format!("the connection to the broker broke: {error}"))
}

/// Percent-encodes a path segment (RFC 3986 section 3.3): an id comes from the command line and may hold anything.
pub(super) fn segment(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~');
    text.bytes()
        .map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use hyper::server;
    use hyper::service::service_fn;

    use super::*;
    use crate::invite::InviteKind;
    use crate::secret::Secret;

    fn client() -> ApiClient {
        ApiClient::new(Invite {
            kind: InviteKind::Login,
            url: "https://gate.example:8443".into(),
            pin: "pin".into(),
            token: Secret::new("t0ken"),
        })
    }

    /// Sends the request over a pipe to a server that answers with this status and body.
    async fn answered(
        request: Request<Full<Bytes>>,
        status: u16,
        body: &'static str,
    ) -> Result<Bytes, Fault> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            let answer = service_fn(move |_| async move {
                Response::builder()
                    .status(status)
                    .body(Full::new(Bytes::from_static(body.as_bytes())))
            });
            server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), answer).await
        });
        let mut sender = open(near).await?;
        collect(sender.send_request(request).await.map_err(|error| broken(&error))?).await
    }

    #[test]
    fn a_request_names_host_token_and_body() {
        let grant = GrantView { user: "alice".into(), resource: "ssh".into() };
        let request = client().request(Method::PUT, "/v1/grants", Some(&grant)).unwrap();
        assert_eq!(request.headers()[HOST], "gate.example:8443");
        assert_eq!(request.headers()[AUTHORIZATION], "Bearer t0ken");
        assert!(!format!("{:?}", client()).contains("t0ken"));
    }

    #[tokio::test]
    async fn an_answer_is_read_and_a_refusal_becomes_its_fault() {
        let request = || client().request(Method::GET, "/v1/whoami", NOTHING).unwrap();
        let body = answered(request(), 200, r#"{"user":"alice","admin":true}"#).await.unwrap();
        let who: WhoAmI = read(&body).unwrap();
        assert_eq!((who.user.as_str(), who.admin), ("alice", true));
        let refusal = r#"{"error":{"code":"TOKEN_REVOKED","message":"gone","remedy":"r"}}"#;
        let fault = answered(request(), 401, refusal).await.unwrap_err();
        assert_eq!(fault, Code::TokenRevoked.because("gone"));
    }

    #[tokio::test]
    async fn refusals_of_newer_brokers_and_of_strangers_are_told_apart() {
        let request = || client().request(Method::GET, "/v1/whoami", NOTHING).unwrap();
        let newer = r#"{"error":{"code":"MOON_PHASE","message":"wait","remedy":"r"}}"#;
        let fault = answered(request(), 403, newer).await.unwrap_err();
        assert_eq!(fault.code, Code::ProtocolVersion);
        assert!(fault.detail.contains("MOON_PHASE: wait"));
        let fault = answered(request(), 502, "<html>").await.unwrap_err();
        assert_eq!(fault.code, Code::BrokerUnreachable);
        assert_eq!(read::<WhoAmI>(b"[]").unwrap_err().code, Code::MessageMalformed);
    }

    #[tokio::test]
    async fn a_connection_that_dies_is_noticed() {
        let (near, far) = tokio::io::duplex(1024);
        let sender = open(near).await.unwrap();
        assert!(alive(None).await.is_none());
        drop(far);
        assert!(alive(Some(sender)).await.is_none());
    }

    #[test]
    fn an_id_cannot_leave_its_path_segment() {
        assert_eq!(segment("k3m9x2q7w4ht"), "k3m9x2q7w4ht");
        assert_eq!(segment("../a b?c\n"), "%2E%2E%2Fa%20b%3Fc%0A");
    }
}
