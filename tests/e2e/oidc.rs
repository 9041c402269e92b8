//! Signing in at a real OpenID Connect provider: `oidc-provider` of the npm registry, which scripts/test installs.
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use switchback_control::Code;
use tempfile::TempDir;

use crate::support::{EchoTarget, Output, Process, eventually, program, switchback};

/// How long a sign-in lasts here unless renewed.
const LIFETIME: Duration = Duration::from_secs(6);
/// Pages of a provider between the start of a sign-in and its end.
const PAGES_MAX: usize = 8;

/// As the built-in ones, for whoever is known to have signed in lately.
const POLICY: &str = r#"
@id("fresh") @reauthenticate("1h")
permit (principal, action in [Action::"see", Action::"connect"], resource)
when { (context.granted || principal.admin) && context has signed_in };

@id("administrators")
permit (principal, action in [Action::"kill", Action::"admin"], resource)
when { principal.admin };
"#;

/// Where scripts/test puts the provider, or `None` after printing that the test is skipped.
fn modules() -> Option<PathBuf> {
    program("node")?;
    program("curl")?;
    let modules = Path::new(env!("CARGO_TARGET_TMPDIR")).join("oidc");
    if modules.join("node_modules/oidc-provider").is_dir() {
        return Some(modules);
    }
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!ci, "oidc-provider is not installed in {}", modules.display());
    println!("SKIPPED: oidc-provider is not installed (scripts/test installs it)");
    None
}

/// An organisation: provider, broker, and an agent that offers `echo`.
struct Org {
    modules: PathBuf,
    home: TempDir,
    provider: Option<Process>,
    issuer: String,
    server: Process,
    _agent: Process,
    _echo: EchoTarget,
    url: String,
    pin: String,
    admin: String,
}

impl Org {
    fn found(modules: PathBuf) -> Self {
        let home = TempDir::new().unwrap();
        let (provider, issuer) = provider(&modules, home.path(), "0", "first");
        let policy = home.path().join("policy.cedar");
        fs::write(&policy, POLICY).unwrap();
        let mut server = Process::start(
            switchback(home.path())
                .args(["serve", "--listen", "127.0.0.1:0", "--io", "epoll", "--json", "--data"])
                .arg(home.path().join("data"))
                .arg("--policy")
                .arg(policy)
                .args(["--oidc-issuer", &issuer, "--oidc-client-id", "switchback"])
                .args(["--oidc-admin-group", "ops", "--oidc-lifetime", "6s"]),
        );
        let ready = server.first_json();
        let text = |key: &str| ready[key].as_str().expect(key).to_owned();
        assert_eq!(text("oidc"), issuer);
        let echo = EchoTarget::start();
        let mut agent = switchback(home.path());
        agent.args(["agent", "--name", "box", "--join", &text("join")]);
        let agent = Process::start(agent.args(["--resource", &echo.resource("echo")]));
        Self {
            modules,
            provider: Some(provider),
            issuer,
            url: text("url"),
            pin: text("pin"),
            admin: text("login"),
            server,
            _agent: agent,
            _echo: echo,
            home,
        }
    }

    /// Restarts the provider with other keys; it remembers its users' grants.
    fn rotate_keys(&mut self) {
        self.provider.take().expect("the provider runs").kill();
        let port = self.issuer.rsplit_once(':').unwrap().1.to_owned();
        let (provider, issuer) = provider(&self.modules, self.home.path(), &port, "second");
        assert_eq!(issuer, self.issuer);
        self.provider = Some(provider);
    }

    /// Begins to sign in; the process and what it first printed.
    fn login(&self, user: &User, how: &str) -> (Process, Value) {
        let login = ["login", "--oidc", &self.url, "--pin", &self.pin, how, "--json"];
        let mut login = Process::start(switchback(user.home.path()).args(login));
        let shown = login.first_json();
        (login, shown)
    }

    fn as_admin(&self, args: &[&str]) -> Value {
        let mut command = switchback(self.home.path());
        Output::of(command.env("SWITCHBACK_LOGIN", &self.admin).args(args).arg("--json"))
            .ok()
            .json()
    }
}

fn provider(modules: &Path, home: &Path, port: &str, keys: &str) -> (Process, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/oidc/provider.mjs");
    let mut provider = Process::start(
        Command::new("node")
            .arg(script)
            .arg(modules)
            .args([port, keys])
            .env("PROVIDER_STATE", home.join("provider.json")),
    );
    let issuer = provider.first_json()["issuer"].as_str().expect("an issuer").to_owned();
    (provider, issuer)
}

/// Somebody with a home directory and a browser.
struct User {
    home: TempDir,
}

impl User {
    fn new() -> Self {
        Self { home: TempDir::new().unwrap() }
    }

    fn run(&self, args: &[&str]) -> Output {
        Output::of(switchback(self.home.path()).args(args).arg("--json"))
    }

    /// Opens a URL, and fills in whatever forms come, as this account. Answers the last page.
    fn browse(&self, url: &str, account: &str) -> String {
        let mut page = self.curl(url, &[]);
        for _ in 0..PAGES_MAX {
            let Some((action, mut fields)) = form(&page) else { return page };
            if page.contains("name=\"login\"") {
                fields.push(format!("login={account}"));
                fields.push("password=any".to_owned());
            }
            page = self.curl(&action, &fields);
        }
        panic!("no end of forms: {page}");
    }

    fn curl(&self, url: &str, fields: &[String]) -> String {
        let jar = self.home.path().join("cookies");
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--location", "--max-time", "10", "--cookie-jar"]);
        curl.arg(&jar).arg("--cookie").arg(&jar);
        for field in fields {
            curl.args(["--data-urlencode", field]);
        }
        Output::of(curl.arg(url)).ok().stdout
    }
}

/// A page's form: where it goes, and its hidden fields.
fn form(page: &str) -> Option<(String, Vec<String>)> {
    let between = |text: &str, from: &str, to: &str| {
        let text = text.split_once(from)?.1;
        Some(text.split_once(to)?.0.to_owned())
    };
    let form = between(page, "<form", "</form>")?;
    let hidden = form.split("<input type=\"hidden\"").skip(1).map(|field| {
        let name = between(field, "name=\"", "\"").unwrap();
        let value = between(field, "value=\"", "\"").unwrap();
        format!("{name}={value}")
    });
    Some((between(&form, "action=\"", "\"")?, hidden.collect()))
}

fn echoes(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text);
}

#[test]
fn a_browser_sign_in_outlives_its_lifetime_and_the_providers_keys_and_ends_with_logout() {
    let Some(modules) = modules() else { return };
    let mut org = Org::found(modules);
    let ada = User::new();
    let (mut login, shown) = org.login(&ada, "--browser");
    let page = ada.browse(shown["open"].as_str().expect("a URL"), "ada");
    assert!(page.contains("Done"), "{page}");
    assert_eq!(login.wait(Duration::from_secs(10)), 0, "{}", login.stderr());
    let signed_in = Instant::now();
    let done = login.json(1);
    assert_eq!((&done["user"], &done["admin"]), (&"ada@example.com".into(), &false.into()));
    assert_eq!(done["renewable"], true);
    let stored = PathBuf::from(done["stored"].as_str().unwrap());
    let signin = stored.with_file_name("signin");
    let mode = fs::metadata(&signin).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    assert_eq!(ada.run(&["connect", "echo", "--stdio"]).refusal(), Code::ResourceUnknown.as_str());
    org.as_admin(&["grant", "add", "ada@example.com", "echo"]);
    let listen = ["connect", "echo", "--listen", "127.0.0.1:0", "--json"];
    let mut connect = Process::start(switchback(ada.home.path()).args(listen));
    let ready = connect.first_json();
    let local: SocketAddr = ready["listen"].as_str().unwrap().parse().unwrap();
    let mut stream = TcpStream::connect(local).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    echoes(&mut stream, b"signed in");
    let before = fs::read_to_string(&signin).unwrap();
    org.rotate_keys();

    std::thread::sleep((LIFETIME + Duration::from_secs(1)).saturating_sub(signed_in.elapsed()));
    echoes(&mut stream, b"longer than the first sign-in, by a key that is new");
    let sessions = org.as_admin(&["sessions"]);
    assert_eq!(sessions[0]["id"], ready["session"], "the same session: {sessions}");
    assert_ne!(fs::read_to_string(&signin).unwrap(), before, "the refresh token is another");
    let who = ada.run(&["whoami"]).ok().json();
    assert_eq!(
        (&who["user"], &who["issuer"]),
        (&"ada@example.com".into(), &org.issuer.clone().into())
    );

    let out = ada.run(&["logout"]).ok().json();
    assert_eq!(out["removed"], true);
    assert_eq!(
        (&out["signed_out"]["broker"], &out["signed_out"]["provider"]),
        (&true.into(), &true.into())
    );
    assert_eq!(connect.wait(Duration::from_secs(10)), i32::from(Code::TokenRevoked.exit() as u8));
    assert!(!stored.exists() && !signin.exists());
    assert_eq!(ada.run(&["whoami"]).refusal(), Code::NotLoggedIn.as_str());
    // The provider knows this browser, and asks all the same: whoever signs in anew is there.
    let (_login, shown) = org.login(&ada, "--browser");
    let page = ada.curl(shown["open"].as_str().unwrap(), &[]);
    assert!(page.contains("name=\"login\""), "{page}");
    let secrets: Value = serde_json::from_str(&before).unwrap();
    let secret = secrets["refresh_token"].as_str().unwrap();
    let logs = [login.stderr(), connect.stderr(), org.server.stderr()].concat();
    assert!(logs.len() > 200 && !logs.contains(secret), "no secret in a log");
}

#[test]
fn a_device_sign_in_needs_no_browser_here_and_ends_if_the_provider_is_gone() {
    let Some(modules) = modules() else { return };
    let mut org = Org::found(modules);
    let root = User::new();
    let (mut login, shown) = org.login(&root, "--device");
    assert!(shown["user_code"].as_str().is_some_and(|code| code.len() >= 8), "{shown}");
    let page = root.browse(shown["verification_uri_complete"].as_str().unwrap(), "root");
    assert!(page.contains("Sign-in Success"), "{page}");
    assert_eq!(login.wait(Duration::from_secs(12)), 0, "{}", login.stderr());
    assert_eq!(login.json(1)["admin"], true, "the group of administrators");
    let seen = root.run(&["resources"]).ok().json();
    assert_eq!(seen[0]["name"], "echo", "the provider said when root signed in: {seen}");
    let tokens = root.run(&["token", "list"]).ok().json();
    let ends = |it: &&Value| it["name"] == "root@example.com" && it["expires_ms"].is_u64();
    assert!(tokens.as_array().unwrap().iter().any(|it| ends(&it)), "{tokens}");
    // Renewal fails, so the sign-in ends where it would have ended.
    org.provider.take().unwrap().kill();
    eventually("the sign-in to end", LIFETIME * 2, || {
        let who = root.run(&["whoami"]);
        (who.code != 0).then(|| assert_eq!(who.refusal(), Code::TokenExpired.as_str()))
    });
}
