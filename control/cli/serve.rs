//! `serve`: broker and gateway in the foreground.
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use etcetera::BaseStrategy;
use serde::{Deserialize, Serialize};
use switchback_control::broker::{Broker, ServeConfig, TlsFiles};
use switchback_control::secret::Secret;
use switchback_control::{Code, Fault};
use switchback_engine::IoChoice;

use crate::args::Global;
use crate::stop::Stop;
use crate::tuning::{self, TuningSpec};
use crate::{config_file, output};

/// The port that every network lets out.
const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 443);
const ROOT_DATA: &str = "/var/lib/switchback";

/// Broker and gateway on one TCP port.
///
/// Run it on a host that both the services' side and the users' side can reach. The first start makes a certificate,
/// keys and a database in the data directory, and prints a join string for agents and a login string for the first
/// user, an administrator. It also answers STUN on the UDP port of the same number. Ctrl-C or SIGTERM ends it; sessions
/// wait for its return and resume.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[command(after_help = "\
Examples:
  switchback serve
  switchback serve --listen 0.0.0.0:8443 --data ./data --public gate.example:8443
  switchback serve --tuning congestion=cubic,dscp=af21,notsent-lowat=64k
  switchback serve --config /etc/switchback/serve.toml      # listen = \"0.0.0.0:8443\" ...")]
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
    /// Certificate chain (PEM) instead of a self-made one; needs --tls-key
    #[arg(long, value_name = "FILE", env = "SWITCHBACK_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// Private key (PEM) of --tls-cert
    #[arg(long, value_name = "FILE", env = "SWITCHBACK_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// How agents and users reach this port, if not by the address it listens on
    #[arg(long, value_name = "HOST:PORT", env = "SWITCHBACK_PUBLIC")]
    public: Option<String>,
    /// Socket options of the listener and of every connection it accepts; --help lists them
    #[arg(long, value_name = "KEY=VALUE,...", env = "SWITCHBACK_TUNING", long_help = tuning::LISTENER_HELP)]
    tuning: Option<TuningSpec>,
    /// TOML file with the same keys as the long flags; flags and environment win
    #[arg(long, value_name = "FILE", env = "SWITCHBACK_CONFIG")]
    #[serde(skip)]
    config: Option<PathBuf>,
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
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            public: self.public.or(file.public),
            tuning: TuningSpec::over(self.tuning, file.tuning),
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
        let listen = self.listen.unwrap_or(DEFAULT_LISTEN);
        let data = self.data.map_or_else(default_data, Ok)?;
        Ok(ServeConfig {
            io: self.io.unwrap_or_default().into(),
            workers: self.workers,
            tls,
            public: self.public,
            tuning: self.tuning.map(|TuningSpec(tuning)| tuning).unwrap_or_default(),
            ..ServeConfig::new(listen, data)
        })
    }
}

fn default_data() -> Result<PathBuf, Fault> {
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
    first_start: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    join: Option<Secret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    login: Option<Secret>,
}

/// Runs `serve`.
pub(crate) async fn run(args: ServeArgs, global: &Global) -> Result<(), Fault> {
    let config = args.with_file()?.into_config()?;
    let mut stop = Stop::listen()?;
    let broker = Broker::start(config).await?;
    let announced = announce(&broker, global);
    if announced.is_ok() {
        stop.wait().await;
        tracing::info!("stopping");
    }
    broker.shutdown().await;
    announced
}

fn announce(broker: &Broker, global: &Global) -> Result<(), Fault> {
    let (io, io_reason) = broker.io_backend();
    let first = broker.first_invites();
    let serving = Serving {
        url: broker.url(),
        address: broker.local_addr(),
        io: io.to_owned(),
        io_reason,
        first_start: first.is_some(),
        join: first.map(|invites| invites.join.clone()),
        login: first.map(|invites| invites.login.clone()),
    };
    if global.json { output::json(&serving) } else { output::line(&in_words(&serving)) }
}

fn in_words(serving: &Serving) -> String {
    let Serving { url, address, io, io_reason, .. } = serving;
    let head = format!(
        "serving {url}\n  listening on {address} (TCP, and STUN on UDP)\n  io {io}: {io_reason}\n"
    );
    let next = match (&serving.join, &serving.login) {
        (Some(join), Some(login)) => format!(
            "First start. These two strings are shown this once; they are secrets.\n\n\
             Beside the service, offer it:\n  switchback agent --resource ssh=tcp:127.0.0.1:22 --join {}\n\n\
             As a user (this one is an administrator), sign in and connect:\n  switchback login {}\n  \
             ssh -o ProxyCommand='switchback connect ssh --stdio' user@ssh\n",
            join.reveal(),
            login.reveal()
        ),
        _ => "To admit more agents and users:\n  switchback token agent NAME\n  \
              switchback token user NAME --grant RESOURCE\n"
            .to_owned(),
    };
    format!("{head}\n{next}\nCtrl-C stops it; sessions resume when it is back.")
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
        let file = file("listen = \"127.0.0.1:1\"\nworkers = 3\nio = \"epoll\"\ndata = \"/d\"\n");
        let path = file.path().to_str().unwrap();
        let config = parsed(&["--listen", "127.0.0.1:2", "--config", path])
            .with_file()
            .and_then(ServeArgs::into_config)
            .unwrap();
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.workers, Some(3));
        assert_eq!(config.io, IoChoice::Epoll);
        assert_eq!(config.data, PathBuf::from("/d"));
    }

    #[test]
    fn a_wrong_value_in_the_file_is_named_with_its_line() {
        let file = file("workers = 2\nlisten = \"nowhere\"\n");
        let fault = parsed(&["--config", file.path().to_str().unwrap()]).with_file().unwrap_err();
        assert_eq!(fault.code, Code::ConfigInvalid);
        assert!(fault.detail.contains(":2: `listen`: "), "{}", fault.detail);
    }

    #[test]
    fn half_a_certificate_and_no_workers_are_refused() {
        for words in [["--tls-cert", "a.pem"], ["--workers", "0"]] {
            let fault = parsed(&words).into_config().unwrap_err();
            assert_eq!(fault.code, Code::ConfigInvalid);
        }
    }

    #[test]
    fn the_first_start_shows_the_next_commands_and_later_ones_how_to_mint() {
        let mut serving = Serving {
            url: "https://gate.example:443".into(),
            address: DEFAULT_LISTEN,
            io: "epoll".into(),
            io_reason: "asked for".into(),
            first_start: true,
            join: Some(Secret::new("sbjoin1_a")),
            login: Some(Secret::new("sblogin1_b")),
        };
        let text = in_words(&serving);
        assert!(text.contains("switchback agent --resource ssh=tcp:127.0.0.1:22 --join sbjoin1_a"));
        assert!(text.contains("switchback login sblogin1_b"));
        (serving.join, serving.login) = (None, None);
        assert!(in_words(&serving).contains("switchback token user NAME"));
    }
}
