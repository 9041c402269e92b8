//! Every route times every role. A route without a row here fails, as the rows are held against the document of the routes.
use std::collections::BTreeSet;

use hyper::Method;

use super::support::*;
use crate::broker::http;
use crate::code::Code;

/// Who asks: nobody, an agent, the user whose things they are, another user, an administrator.
const ROLES: usize = 5;

/// A route as the document has it, a path that exists, a body; then what each role gets.
type Row = (&'static str, String, &'static str, [Result<u16, Code>; ROLES]);

const FINE: Result<u16, Code> = Ok(200);
const DONE: Result<u16, Code> = Ok(204);
const NOBODY: Result<u16, Code> = Err(Code::TokenInvalid);
const NO: Result<u16, Code> = Err(Code::AdminOnly);
const NONE: Result<u16, Code> = Err(Code::SessionUnknown);

fn all(method_and_path: &'static str, expected: [Result<u16, Code>; ROLES]) -> Row {
    let path = method_and_path.split(' ').nth(1).unwrap().to_owned();
    (method_and_path, path, "", expected)
}

fn for_admins(route: &'static str, path: &str, body: &'static str, fine: Result<u16, Code>) -> Row {
    (route, path.to_owned(), body, [NOBODY, NOBODY, NO, NO, fine])
}

/// Rows that end what others look at come last; their owner's turn is before the administrator's.
fn rows(session: &str, other_session: &str, token: &str, end: &str) -> Vec<Row> {
    let anyone = [FINE; ROLES];
    let users = [NOBODY, NOBODY, FINE, FINE, FINE];
    let owners = [NOBODY, NOBODY, FINE, NONE, FINE];
    // Its ends have left, which only those learn who may see it.
    let gone = |code| [NOBODY, NOBODY, Err(code), NONE, Err(code)];
    let off = Err(Code::SigninOff);
    let no_signin = Err(Code::UsageInvalid);
    let grant = r#"{"user":"eve","resource":"web"}"#;
    let one = |session: &str, rest: &str| format!("/v1/sessions/{session}{rest}");
    // No WebSocket is asked for: who passes the door is told so.
    let passed = Err(Code::MessageMalformed);
    vec![
        all("GET /healthz", anyone),
        all("GET /readyz", anyone),
        all("GET /v1/openapi.json", anyone),
        all("GET /v1/whoami", users),
        all("GET /v1/resources", users),
        all("GET /v1/sessions", users),
        all("GET /v1/events", users),
        ("GET /v1/sessions/{id}", one(session, ""), "", owners),
        ("GET /v1/sessions/{id}/explain", one(session, "/explain"), "", owners),
        (
            "POST /v1/sessions/{id}/message",
            one(session, "/message"),
            r#"{"text":"hi"}"#,
            gone(Code::ClientOffline),
        ),
        ("POST /v1/sessions/{id}/pause", one(session, "/pause"), "", gone(Code::AgentOffline)),
        ("POST /v1/sessions/{id}/resume", one(session, "/resume"), "", gone(Code::AgentOffline)),
        for_admins("GET /metrics", "/metrics", "", FINE),
        for_admins("GET /v1/tokens", "/v1/tokens", "", FINE),
        for_admins("POST /v1/tokens", "/v1/tokens", r#"{"kind":"user","name":"bob"}"#, FINE),
        for_admins("GET /v1/grants", "/v1/grants", "", FINE),
        for_admins("PUT /v1/grants", "/v1/grants", grant, DONE),
        for_admins("DELETE /v1/grants", "/v1/grants", grant, DONE),
        for_admins("GET /v1/policy", "/v1/policy", "", FINE),
        for_admins(
            "POST /v1/policy/explain",
            "/v1/policy/explain",
            r#"{"user":"eve","resource":"ssh"}"#,
            FINE,
        ),
        for_admins("GET /v1/audit", "/v1/audit?since_ms=0&user=eve", "", FINE),
        for_admins("GET /v1/agents", "/v1/agents", "", FINE),
        for_admins("PUT /v1/agents/{id}/drain", "/v1/agents/lab/drain", "", DONE),
        for_admins("DELETE /v1/agents/{id}/drain", "/v1/agents/lab/drain", "", DONE),
        all("GET /v1/gateways", users),
        all("GET /v1/estimate", users),
        for_admins("PUT /v1/gateways/{id}/drain", "/v1/gateways/local/drain", "", DONE),
        for_admins("DELETE /v1/gateways/{id}/drain", "/v1/gateways/local/drain", "", DONE),
        all("GET /v1/signin", anyone),
        (
            "POST /v1/signin",
            "/v1/signin".to_owned(),
            r#"{"id_token":"x"}"#,
            [off, NOBODY, off, off, off],
        ),
        all("POST /v1/signout", [NOBODY, NOBODY, no_signin, no_signin, no_signin]),
        for_admins("POST /v1/test-pairs", "/v1/test-pairs", r#"{"count":1}"#, FINE),
        for_admins("DELETE /v1/tokens/{id}", &format!("/v1/tokens/{token}"), "", DONE),
        // Whoever has a join string may enrol, and whoever has an enrolment's key may change it: `tests/enrol.rs`.
        (
            "POST /v1/enrol",
            "/v1/enrol".to_owned(),
            r#"{"kind":"agent","name":"eve","key":"x","proof":"x"}"#,
            [NOBODY; ROLES],
        ),
        (
            "POST /v1/enrol/rotate",
            "/v1/enrol/rotate".to_owned(),
            r#"{"key":"x","proof":"x"}"#,
            [NOBODY; ROLES],
        ),
        for_admins("POST /v1/tokens/{id}/rotate", &format!("/v1/tokens/{end}/rotate"), "", DONE),
        all("GET /v1/link/agent", [NOBODY, passed, NOBODY, NOBODY, NOBODY]),
        all("GET /v1/link/gateway", [NOBODY; ROLES]),
        all("GET /v1/link/client", [NOBODY, NOBODY, passed, passed, passed]),
        ("DELETE /v1/sessions/{id}", one(session, ""), "", [NOBODY, NOBODY, DONE, NONE, NONE]),
        (
            "DELETE /v1/sessions/{id}",
            one(other_session, ""),
            "",
            [NOBODY, NOBODY, NONE, NONE, DONE],
        ),
    ]
}

/// Roles in the order of their turns: who may do least goes first.
const TURNS: [usize; ROLES] = [0, 1, 3, 2, 4];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_can_never_see_list_guess_or_end_what_is_not_theirs() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let (ada, _) = bench.user("ada", &["ssh"]).await;
    let (eve, _) = bench.user("eve", &[]).await;
    let (max, _) = bench.user("max", &["ssh"]).await;
    let mut agent = bench.agent("lab", vec![]).await;
    let mut client = bench.client_link(&ada).await;
    let session = client.open("ssh").await.ok().unwrap().session.0;
    drop(agent.hear::<crate::wire::ToAgent>().await);
    let mut other_client = bench.client_link(&max).await;
    let other_session = other_client.open("ssh").await.ok().unwrap().session.0;
    // Who is asked to explain and has gone is not waited for.
    drop((client, other_client, agent));
    let (_, spare) = bench.user("spare", &[]).await;

    let (pass, end) = (bench.pass("lab").await, bench.end("lab").await.id);
    let tokens = [None, Some(&pass), Some(&ada), Some(&eve), Some(&bench.admin)];
    let rows = rows(&session, &other_session, &spare, &end);
    for (route, path, body, expected) in &rows {
        let method: Method = route.split(' ').next().unwrap().parse().unwrap();
        for role in TURNS {
            let token = tokens[role].map(String::as_str);
            let answer = bench.ask(method.clone(), path, token, *body).await;
            // Failed sign-ins of one address are slowed down, which is told in place of what was wrong.
            let got = match answer.code() {
                Some(Code::RateLimited) => Err(Code::TokenInvalid),
                code => code.map_or(Ok(answer.status.as_u16()), Err),
            };
            assert_eq!(got, expected[role], "{route} role {role}: {}", answer.text());
            let listed = matches!(*route, "GET /v1/sessions" | "GET /v1/events");
            if listed && answer.status.is_success() {
                assert_eq!(answer.text().contains(&session), role != 3, "{route} role {role}");
                assert_eq!(answer.text().contains(&other_session), role == 4, "{route} {role}");
            }
        }
    }
    let covered: BTreeSet<&str> = rows.iter().map(|(route, ..)| *route).collect();
    assert_eq!(covered, documented().iter().map(String::as_str).collect());
    let nowhere = bench.get("/v1/nothing", &bench.admin).await;
    assert_eq!(nowhere.code(), Some(Code::NotFound));
}

/// `METHOD /path` of every route.
fn documented() -> BTreeSet<String> {
    let document = serde_json::to_value(http::document()).unwrap();
    let paths = document["paths"].as_object().unwrap().iter();
    let routes = paths.flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().keys();
        methods.map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    routes.collect()
}
