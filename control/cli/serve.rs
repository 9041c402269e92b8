//! `serve`: broker and gateway in the foreground.
use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use etcetera::BaseStrategy;
use serde::{Deserialize, Serialize};
use switchback_control::broker::{
    Broker, Draining, Handover, Location, Relay, ServeConfig, Successor, TlsFiles,
};
use switchback_control::secret::Secret;
use switchback_control::{Code, Fault};
use switchback_engine::IoChoice;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::args::Global;
use crate::oidc_args::OidcArgs;
use crate::stop::Stop;
use crate::tuning::{self, TuningSpec};
use crate::udp_args::PortRange;
use crate::upgrade::Upgrade;
use crate::{config_file, notify, output};

/// The port that every network lets out.
const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 443);
/// Microseconds. Waking a core takes less than 100; longer spinning only burns it.
const BUSY_POLL_MAX: u32 = 10_000;
const ROOT_DATA: &str = "/var/lib/switchback";
/// Long enough that most sessions end by themselves and only those resume that last for hours; short enough that a version
/// with a hole is gone soon after its successor started. Cutting costs the sessions left a round trip or two, no byte.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3600);
/// Whoever means longer means for ever, and such a time cannot be added to a clock.
const DRAIN_TIMEOUT_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Broker and gateway on one TCP port.
///
/// Run it on a host that both the services' side and the users' side can reach. The first start makes a certificate,
/// keys and a database in the data directory, and prints a join string for agents and a login string for the first
/// user, an administrator. It also answers STUN and relays UDP (TURN) on the UDP port of the same number. Ctrl-C or SIGTERM ends it; sessions
/// wait for its return and resume.
///
/// SIGUSR2 replaces it without dropping a connection: it starts its program anew, with the same arguments and
/// --takeover, hands its sockets over, and ends when its last pair has, or after --drain-timeout. A new process that
/// fails leaves the old one serving.
///
/// A renewed --tls-cert with the same key is used within seconds, or at once on SIGHUP. GET /healthz says whether the
/// process lives, /readyz whether it can do its work; neither needs a token.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[command(after_help = "\
Examples:
  switchback serve
  switchback serve --listen 0.0.0.0:8443 --data ./data --public gate.example:8443
  switchback serve --turn-ports 50000-50999       for a firewall in front: UDP 443 and these, TCP 443
  switchback serve --policy /etc/switchback/policy --location office=192.0.2.0/24
  switchback serve --tuning congestion=cubic,dscp=af21,notsent-lowat=64k
  switchback serve --config /etc/switchback/serve.toml      # listen = \"0.0.0.0:8443\" ...
  switchback serve --oidc-issuer https://id.example --oidc-client-id switchback --oidc-admin-group ops
  kill -USR2 PID                                            # replace it by the program now on the disk")]
pub(crate) struct ServeArgs {
    /// Address to listen on [default: 0.0.0.0:443]
    #[arg(long, value_name = "ADDRESS:PORT", env = "SWITCHBACK_LISTEN")]
    listen: Option<SocketAddr>,
    /// Data directory [default: /var/lib/switchback as root, else $XDG_STATE_HOME/switchback/serve]
    #[arg(long, value_name = "DIR", env = "SWITCHBACK_DATA")]
    data: Option<PathBuf>,
    /// Where readiness comes from: the best that works, or one of the two [default: auto]
    #[arg(long, value_name = "BACKEND", env = "SWITCHBACK_IO")]
    io: Option<Io>,
    /// Relay threads, each on a core of its own [default: one per core]
    #[arg(long, value_name = "N", env = "SWITCHBACK_WORKERS")]
    workers: Option<usize>,
    /// Spin this long after bytes moved before sleeping, for latency: 0 (never) to 10000 [default: 0]
    #[arg(long, value_name = "MICROS", env = "SWITCHBACK_BUSY_POLL")]
    busy_poll: Option<u32>,
    /// Certificate chain (PEM) instead of a self-made one; needs --tls-key
    #[arg(long, value_name = "FILE", env = "SWITCHBACK_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// Private key (PEM) of --tls-cert
    #[arg(long, value_name = "FILE", env = "SWITCHBACK_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// How agents and users reach this port, if not by the address it listens on
    #[arg(long, value_name = "HOST:PORT", env = "SWITCHBACK_PUBLIC")]
    public: Option<String>,
    /// Take the place of the server that uses this data directory and address now, without dropping a connection
    #[arg(long)]
    #[serde(skip)]
    takeover: bool,
    /// After a takeover, how long the old process relays sessions that go on; then they resume through the new one.
    /// 0 ends them at once, 30days is the most [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    #[arg(env = "SWITCHBACK_DRAIN_TIMEOUT")]
    #[serde(deserialize_with = "time")]
    drain_timeout: Option<Duration>,
    /// UDP ports that sessions are relayed through (TURN), for firewalls [default: 49152-65535]
    #[arg(long, value_name = "FIRST-LAST", env = "SWITCHBACK_TURN_PORTS", conflicts_with_all = ["no_turn", "turn_server"])]
    turn_ports: Option<PortRange>,
    /// Relay no UDP; sessions without a direct path stay on TCP
    #[arg(long, env = "SWITCHBACK_NO_TURN", conflicts_with = "turn_server")]
    no_turn: bool,
    /// Have UDP relayed by another TURN server (coturn with use-auth-secret); needs --turn-secret
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "SWITCHBACK_TURN_SERVER",
        requires = "turn_secret"
    )]
    turn_server: Option<String>,
    /// File that holds the secret shared with --turn-server (coturn's static-auth-secret)
    #[arg(long, value_name = "FILE", env = "SWITCHBACK_TURN_SECRET", requires = "turn_server")]
    turn_secret: Option<PathBuf>,
    /// Another address or port to answer STUN on, so that `netcheck` can tell kinds of NAT (RFC 5780); three in all: other
    /// port, other address, both. Default: the last free one of --turn-ports
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "SWITCHBACK_STUN_ALTERNATE",
        value_delimiter = ','
    )]
    stun_alternate: Vec<SocketAddr>,
    /// Cedar policies that decide in place of the built-in ones: a file, or a directory of *.cedar files. They are watched, and
    /// changes take effect within a second or two; while they are wrong the last good ones hold
    #[arg(long, value_name = "PATH", env = "SWITCHBACK_POLICY")]
    policy: Option<PathBuf>,
    /// A name for networks, for policies; may be repeated: office=192.0.2.0/24,2001:db8::/32
    #[arg(long, value_name = "NAME=CIDR,...")]
    location: Vec<String>,
    /// Socket options of the listener and of every connection it accepts; --help lists them
    #[arg(long, value_name = "KEY=VALUE,...", env = "SWITCHBACK_TUNING", long_help = tuning::LISTENER_HELP)]
    tuning: Option<TuningSpec>,
    /// TOML file with the same keys as the long flags; flags and environment win
    #[arg(long, value_name = "FILE", env = "SWITCHBACK_CONFIG")]
    #[serde(skip)]
    config: Option<PathBuf>,
    #[command(flatten)]
    oidc: Box<OidcArgs>,
}

/// Where readiness comes from, as people write it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Io {
    /// io_uring where the kernel has it, else epoll
    #[default]
    Auto,
    /// io_uring, or refuse to start
    Uring,
    /// epoll
    Epoll,
}

impl From<Io> for IoChoice {
    fn from(io: Io) -> Self {
        match io {
            Io::Auto => Self::Auto,
            Io::Uring => Self::Uring,
            Io::Epoll => Self::Epoll,
        }
    }
}

impl ServeArgs {
    /// Fills what flags and environment left open from the file.
    fn with_file(self) -> Result<Self, Fault> {
        let Some(path) = &self.config else { return Ok(self) };
        let file: Self = config_file::load(path)?;
        Ok(Self {
            listen: self.listen.or(file.listen),
            data: self.data.or(file.data),
            io: self.io.or(file.io),
            workers: self.workers.or(file.workers),
            busy_poll: self.busy_poll.or(file.busy_poll),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            public: self.public.or(file.public),
            drain_timeout: self.drain_timeout.or(file.drain_timeout),
            takeover: self.takeover,
            turn_ports: self.turn_ports.or(file.turn_ports),
            no_turn: self.no_turn || file.no_turn,
            turn_server: self.turn_server.or(file.turn_server),
            turn_secret: self.turn_secret.or(file.turn_secret),
            stun_alternate: if self.stun_alternate.is_empty() {
                file.stun_alternate
            } else {
                self.stun_alternate
            },
            policy: self.policy.or(file.policy),
            location: if self.location.is_empty() { file.location } else { self.location },
            tuning: TuningSpec::over(self.tuning, file.tuning),
            oidc: Box::new(self.oidc.over(*file.oidc)),
            config: self.config,
        })
    }

    fn into_config(self) -> Result<ServeConfig, Fault> {
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            (None, None) => None,
            _ => return Err(Code::ConfigInvalid.because("--tls-cert and --tls-key go together")),
        };
        if self.workers == Some(0) {
            return Err(Code::ConfigInvalid.because("--workers must be at least 1"));
        }
        if self.busy_poll.is_some_and(|micros| micros > BUSY_POLL_MAX) {
            let reason = format!("--busy-poll must be at most {BUSY_POLL_MAX} microseconds");
            return Err(Code::ConfigInvalid.because(reason));
        }
        if self.drain_timeout.is_some_and(|limit| limit > DRAIN_TIMEOUT_MAX) {
            return Err(Code::ConfigInvalid.because("--drain-timeout must be at most 30days"));
        }
        let relay = relay(self.no_turn, self.turn_server, self.turn_secret.as_deref())?;
        if self.stun_alternate.len() > STUN_ALTERNATES_MAX {
            return Err(Code::ConfigInvalid.because("--stun-alternate: at most three"));
        }
        let oidc = self.oidc.into_config()?;
        let locations: Result<Vec<_>, _> =
            self.location.iter().map(|it| Location::parse(it)).collect();
        let locations = locations?;
        let busy_poll = self.busy_poll.filter(|&micros| micros > 0);
        let listen = self.listen.unwrap_or(DEFAULT_LISTEN);
        let data = self.data.map_or_else(default_data, Ok)?;
        Ok(ServeConfig {
            io: self.io.unwrap_or_default().into(),
            workers: self.workers,
            busy_poll: busy_poll.map(|micros| Duration::from_micros(micros.into())),
            tls,
            public: self.public,
            relay,
            turn_ports: self.turn_ports.map(|PortRange(ports)| ports),
            stun_alternates: self.stun_alternate,
            oidc,
            policy: self.policy,
            locations,
            tuning: self.tuning.map(|TuningSpec(tuning)| tuning).unwrap_or_default(),
            ..ServeConfig::new(listen, data)
        })
    }
}

/// RFC 5780 section 7.1: two addresses and two ports, of which the listener has one of each.
const STUN_ALTERNATES_MAX: usize = 3;
/// Longest secret read; coturn's are typed by people.
const SECRET_BYTES_MAX: u64 = 4096;

/// Where UDP is relayed.
fn relay(off: bool, server: Option<String>, secret: Option<&Path>) -> Result<Relay, Fault> {
    match (server, secret) {
        (Some(_), _) | (_, Some(_)) if off => {
            Err(Code::ConfigInvalid.because("--no-turn and --turn-server exclude each other"))
        }
        (Some(address), Some(path)) => {
            let wrong = |why: String| {
                Code::ConfigInvalid.because(format!("--turn-secret {}: {why}", path.display()))
            };
            let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
            let mut text = String::new();
            file.take(SECRET_BYTES_MAX)
                .read_to_string(&mut text)
                .map_err(|error| wrong(error.to_string()))?;
            if text.trim().is_empty() {
                return Err(wrong("it is empty".into()));
            }
            if address.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
                let why = format!("--turn-server `{address}` is no HOST:PORT");
                return Err(Code::ConfigInvalid.because(why));
            }
            Ok(Relay::Foreign { address, secret: Secret::new(text.trim()) })
        }
        (None, None) if off => Ok(Relay::Off),
        (None, None) => Ok(Relay::Own),
        _ => Err(Code::ConfigInvalid.because("--turn-server and --turn-secret go together")),
    }
}

/// A time as on the command line: `90s`, `1h 30m`.
pub(crate) fn time<'de, D: serde::Deserializer<'de>>(
    value: D,
) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(value)?;
    humantime::parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
}

pub(crate) fn default_data() -> Result<PathBuf, Fault> {
    if rustix::process::geteuid().is_root() {
        return Ok(ROOT_DATA.into());
    }
    etcetera::choose_base_strategy()
        .ok()
        .and_then(|base| base.state_dir())
        .map(|state| state.join("switchback").join("serve"))
        .ok_or_else(|| Code::DataDirUnusable.because("there is no home directory"))
}

/// What `serve --json` prints once it serves.
#[derive(Serialize)]
struct Serving {
    url: String,
    address: SocketAddr,
    io: String,
    io_reason: String,
    /// For `login --oidc --pin`.
    pin: String,
    /// The OIDC provider that users sign in by.
    #[serde(skip_serializing_if = "Option::is_none")]
    oidc: Option<String>,
    first_start: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    join: Option<Secret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    login: Option<Secret>,
}

/// Runs `serve`.
pub(crate) async fn run(args: ServeArgs, global: &Global) -> Result<(), Fault> {
    let args = args.with_file()?;
    let drain_timeout = args.drain_timeout.unwrap_or(DRAIN_TIMEOUT);
    let takeover = args.takeover;
    let config = args.into_config()?;
    let mut orders =
        Orders { stop: Stop::listen()?, upgrade: Upgrade::listen()?, reload: reload_signal()? };
    let broker =
        if takeover { Broker::take_over(config).await? } else { Broker::start(config).await? };
    if let Err(fault) = announce(&broker, global) {
        // Whoever read the first process's output may have left since.
        if !takeover {
            broker.shutdown().await;
            return Err(fault);
        }
        tracing::warn!(%fault, "nobody reads what this process prints");
    }
    notify::ready();
    serve(broker, &mut orders, drain_timeout).await
}

/// What a serving process is told by signals.
struct Orders {
    stop: Stop,
    upgrade: Upgrade,
    /// SIGHUP.
    reload: Signal,
}

fn reload_signal() -> Result<Signal, Fault> {
    signal(SignalKind::hangup())
        .map_err(|error| Code::Internal.because(format!("cannot catch signals: {error}")))
}

impl Orders {
    /// Serves until told to stop, or until a new process is ready to take over.
    async fn obey(&mut self, broker: &Broker) -> Option<Successor> {
        let mut successor = std::pin::pin!(broker.successor());
        loop {
            tokio::select! {
                successor = &mut successor => return Some(successor),
                () = self.stop.wait() => return None,
                () = self.upgrade.wait() => self.upgrade.start(),
                _ = self.reload.recv() => broker.reload(),
            }
        }
    }
}

/// Serves, and does not return before the pairs that takeovers left have ended.
async fn serve(broker: Broker, orders: &mut Orders, drain_limit: Duration) -> Result<(), Fault> {
    let mut drains = Drains::new(drain_limit);
    let served = serve_until_relieved(broker, orders, &mut drains).await;
    drains.cut();
    drains.over().await;
    served
}

async fn serve_until_relieved(
    mut broker: Broker,
    orders: &mut Orders,
    drains: &mut Drains,
) -> Result<(), Fault> {
    loop {
        let Some(successor) = orders.obey(&broker).await else {
            tracing::info!("stopping");
            notify::stopping();
            drains.cut();
            broker.shutdown().await;
            return Ok(());
        };
        let pid = successor.pid();
        match broker.hand_over(successor, orders.stop.wait()).await? {
            Handover::Done(draining) => {
                notify::main_is(pid);
                drains.add(draining);
                tokio::select! {
                    () = drains.over() => {}
                    () = orders.stop.wait() => tracing::info!("told to end at once"),
                }
                return Ok(());
            }
            Handover::Undone(again, draining) => {
                broker = *again;
                drains.add(draining);
            }
            Handover::Stopped(draining) => {
                tracing::info!("stopping in the middle of a takeover");
                drains.add(draining);
                return Ok(());
            }
        }
    }
}

/// The gateways that takeovers left to their pairs. One whose takeover failed goes on beside its successor: what had
/// stopped is not started again.
struct Drains {
    limit: Duration,
    cut: CancellationToken,
    tasks: JoinSet<()>,
}

impl Drains {
    fn new(limit: Duration) -> Self {
        Self { limit, cut: CancellationToken::new(), tasks: JoinSet::new() }
    }

    /// Waits in the background for the pairs to end, and ends those that are left.
    fn add(&mut self, draining: Draining) {
        let (limit, cut) = (self.limit, self.cut.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = draining.emptied(limit) => {}
                () = cut.cancelled() => {}
            }
            draining.end().await;
        });
    }

    /// Leaves the pairs no more time.
    fn cut(&self) {
        self.cut.cancel();
    }

    /// Waits until all have ended. Safe to drop and call again.
    async fn over(&mut self) {
        // A panic there was reported when it happened.
        while self.tasks.join_next().await.is_some() {}
    }
}

fn announce(broker: &Broker, global: &Global) -> Result<(), Fault> {
    let (io, io_reason) = broker.io_backend();
    let first = broker.first_invites();
    let serving = Serving {
        url: broker.url(),
        address: broker.local_addr(),
        io: io.to_owned(),
        io_reason,
        pin: broker.pin().to_owned(),
        oidc: broker.oidc_issuer().map(str::to_owned),
        first_start: first.is_some(),
        join: first.map(|invites| invites.join.clone()),
        login: first.map(|invites| invites.login.clone()),
    };
    if global.json { output::json(&serving) } else { output::line(&in_words(&serving)) }
}

fn in_words(serving: &Serving) -> String {
    let Serving { url, address, io, io_reason, .. } = serving;
    let head = format!(
        "serving {url}\n  listening on {address} (TCP, and STUN and TURN on UDP)\n  io {io}: {io_reason}\n"
    );
    let next = match (&serving.join, &serving.login) {
        (Some(join), Some(login)) => format!(
            "First start. These two strings are shown this once; they are secrets.\n\n\
             Beside the service, offer it (this string is for one agent, within a day):\n  switchback agent --resource ssh=tcp:127.0.0.1:22 --join {}\n\n\
             As a user (this one is an administrator), sign in and connect:\n  switchback login {}\n  \
             ssh -o ProxyCommand='switchback connect ssh --stdio' user@ssh\n",
            join.reveal(),
            login.reveal()
        ),
        _ => "To admit more agents and users:\n  switchback token agent NAME\n  \
              switchback token user NAME --grant RESOURCE\n"
            .to_owned(),
    };
    let oidc = serving.oidc.as_ref().map_or_else(String::new, |issuer| {
        let pin = &serving.pin;
        format!("\nUsers of {issuer} sign in with:\n  switchback login --oidc {url} --pin {pin}\n")
    });
    format!("{head}\n{next}{oidc}\nCtrl-C stops it; sessions resume when it is back.")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn parsed(words: &[&str]) -> ServeArgs {
        let words = ["switchback", "serve"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Serve(args) => args,
            other => panic!("parsed as {other:?}"),
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = file(
            "listen = \"127.0.0.1:1\"\nworkers = 3\nbusy-poll = 70\nio = \"epoll\"\ndata = \"/d\"\n",
        );
        let path = file.path().to_str().unwrap();
        let config = parsed(&["--listen", "127.0.0.1:2", "--config", path])
            .with_file()
            .and_then(ServeArgs::into_config)
            .unwrap();
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.workers, Some(3));
        assert_eq!(config.busy_poll, Some(Duration::from_micros(70)));
        assert_eq!(config.io, IoChoice::Epoll);
        assert_eq!(config.data, PathBuf::from("/d"));
    }

    #[test]
    fn the_provider_is_a_table_of_the_file_and_flags_win() {
        let file = file("[oidc]\nissuer = \"https://id.example\"\nclient-id = \"file\"\n");
        let path = file.path().to_str().unwrap();
        let args = parsed(&["--oidc-client-id", "flag", "--config", path]).with_file().unwrap();
        let oidc = args.into_config().unwrap().oidc.unwrap();
        assert_eq!((oidc.issuer.as_str(), oidc.client_id.as_str()), ("https://id.example", "flag"));
    }

    #[test]
    fn a_wrong_value_in_the_file_is_named_with_its_line() {
        let file = file("workers = 2\nlisten = \"nowhere\"\n");
        let fault = parsed(&["--config", file.path().to_str().unwrap()]).with_file().unwrap_err();
        assert_eq!(fault.code, Code::ConfigInvalid);
        assert!(fault.detail.contains(":2: `listen`: "), "{}", fault.detail);
    }

    #[test]
    fn the_drain_has_a_time_in_words_from_either_source() {
        let limit = |args: ServeArgs| args.with_file().map(|args| args.drain_timeout);
        assert_eq!(limit(parsed(&["--drain-timeout", "0s"])).unwrap(), Some(Duration::ZERO));
        let written = file("drain-timeout = \"1h 30m\"\n");
        let path = written.path().to_str().unwrap();
        let read = limit(parsed(&["--config", path])).unwrap();
        assert_eq!(read, Some(Duration::from_secs(5400)));
        let wrong = file("drain-timeout = \"soon\"\n");
        let fault = limit(parsed(&["--config", wrong.path().to_str().unwrap()])).unwrap_err();
        assert_eq!(fault.code, Code::ConfigInvalid);
    }

    #[test]
    fn a_drain_may_last_thirty_days() {
        let judged = |limit: &str| {
            let args = parsed(&["--drain-timeout", limit]);
            args.into_config().map(drop).map_err(|fault| fault.code)
        };
        assert_eq!(judged("30days"), Ok(()));
        assert_eq!(judged("30days 1s"), Err(Code::ConfigInvalid));
        assert_eq!(judged("100000000000y"), Err(Code::ConfigInvalid));
    }

    #[test]
    fn half_a_certificate_and_no_workers_are_refused() {
        for words in [["--tls-cert", "a.pem"], ["--workers", "0"]] {
            let fault = parsed(&words).into_config().unwrap_err();
            assert_eq!(fault.code, Code::ConfigInvalid);
        }
    }

    #[test]
    fn busy_poll_is_off_unless_asked_for_and_at_most_ten_milliseconds() {
        let busy_poll = |words: &[&str]| {
            parsed(words).into_config().map(|config| config.busy_poll).map_err(|fault| fault.code)
        };
        assert_eq!(busy_poll(&[]), Ok(None));
        assert_eq!(busy_poll(&["--busy-poll", "0"]), Ok(None));
        assert_eq!(busy_poll(&["--busy-poll", "50"]), Ok(Some(Duration::from_micros(50))));
        assert_eq!(busy_poll(&["--busy-poll", "10001"]), Err(Code::ConfigInvalid));
    }

    #[test]
    fn the_first_start_shows_the_next_commands_and_later_ones_how_to_mint() {
        let mut serving = Serving {
            url: "https://gate.example:443".into(),
            address: DEFAULT_LISTEN,
            io: "epoll".into(),
            io_reason: "asked for".into(),
            pin: "p1n".into(),
            oidc: None,
            first_start: true,
            join: Some(Secret::new("sbjoin1_a")),
            login: Some(Secret::new("sblogin1_b")),
        };
        let text = in_words(&serving);
        assert!(text.contains("switchback agent --resource ssh=tcp:127.0.0.1:22 --join sbjoin1_a"));
        assert!(text.contains("switchback login sblogin1_b"));
        (serving.join, serving.login) = (None, None);
        assert!(!in_words(&serving).contains("--oidc"));
        serving.oidc = Some("https://id.example".into());
        let text = in_words(&serving);
        assert!(text.contains("switchback login --oidc https://gate.example:443 --pin p1n"));
        assert!(in_words(&serving).contains("switchback token user NAME"));
    }
}
