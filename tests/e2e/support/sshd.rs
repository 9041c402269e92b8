//! OpenSSH: a server of our own, and its clients through `switchback connect ssh --stdio`.
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Process, eventually, program};

/// An SSH server: own keys, own port, one allowed key.
pub(crate) struct Sshd {
    _process: Process,
    dir: PathBuf,
    pub(crate) resource: String,
}

impl Sshd {
    /// On any port of loopback; `None` after saying which program is missing.
    pub(crate) fn start(dir: &Path) -> Option<Self> {
        // The port is free again between here and sshd's bind; nothing else on loopback asks for it by chance.
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self::start_with(dir, addr, |mut command| command.spawn())
    }

    /// As [`Self::start`], at this address, started by somebody else.
    pub(crate) fn start_with(
        dir: &Path,
        addr: SocketAddr,
        spawn: impl FnOnce(Command) -> io::Result<Child>,
    ) -> Option<Self> {
        let sshd = program("sshd")?;
        for tool in ["ssh", "scp", "ssh-keygen"] {
            program(tool)?;
        }
        let dir = dir.join("ssh");
        fs::create_dir(&dir).unwrap();
        // sshd insists on this directory when started by root, even without privilege separation in use.
        let _ = fs::create_dir_all("/run/sshd");
        for key in ["host", "user"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.join(key))
                .stdout(Stdio::null())
                .status();
            assert!(made.unwrap().success());
        }
        fs::copy(dir.join("user.pub"), dir.join("authorized")).unwrap();
        let config = format!(
            "ListenAddress {addr}\nHostKey {d}/host\nAuthorizedKeysFile {d}/authorized\nPidFile none\nUsePAM no\n\
             StrictModes no\nPermitRootLogin yes\nMaxStartups 100\nSubsystem sftp internal-sftp\n",
            d = dir.display()
        );
        fs::write(dir.join("config"), config).unwrap();
        let mut command = Command::new(sshd);
        command.args(["-D", "-e", "-f"]).arg(dir.join("config"));
        let process = Process::start_with(command, spawn);
        eventually("sshd to listen", Duration::from_secs(10), || {
            process.stderr().contains("Server listening").then_some(())
        });
        Some(Self { _process: process, dir, resource: format!("ssh=tcp:{addr}") })
    }

    /// `ssh` or `scp` of the user with this login string; the host's name does not matter.
    pub(crate) fn command(&self, tool: &str, home: &Path, login: &str) -> Command {
        let proxy = format!("{} connect ssh --stdio", env!("CARGO_BIN_EXE_switchback"));
        let options = [
            format!("ProxyCommand={proxy}"),
            format!("IdentityFile={}", self.dir.join("user").display()),
            "IdentitiesOnly=yes".into(),
            "StrictHostKeyChecking=no".into(),
            format!("UserKnownHostsFile={}", home.join("known_hosts").display()),
            "LogLevel=ERROR".into(),
        ];
        let mut command = Command::new(tool);
        command
            .args(["-F", "none"])
            .args(options.into_iter().flat_map(|option| ["-o".to_owned(), option]))
            .env("SWITCHBACK_LOGIN", login)
            .env("XDG_STATE_HOME", home.join("state"))
            .env("RUST_LOG", "error");
        command
    }
}
