//! OpenSSH through the gateway, with `switchback connect ssh --stdio` as its ProxyCommand.
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::support::{Bed, Bytes, IOS, Output, Process, eventually, program};

/// An SSH server of our own: own keys, own port, one allowed key.
struct Sshd {
    _process: Process,
    dir: PathBuf,
    resource: String,
}

impl Sshd {
    fn start(dir: &Path) -> Option<Self> {
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
        // The port is free again between here and sshd's bind; nothing else on loopback asks for it by chance.
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = format!(
            "ListenAddress {addr}\nHostKey {d}/host\nAuthorizedKeysFile {d}/authorized\nPidFile none\nUsePAM no\n\
             StrictModes no\nPermitRootLogin yes\nMaxStartups 100\nSubsystem sftp internal-sftp\n",
            d = dir.display()
        );
        fs::write(dir.join("config"), config).unwrap();
        let process =
            Process::start(Command::new(sshd).args(["-D", "-e", "-f"]).arg(dir.join("config")));
        eventually("sshd to listen", Duration::from_secs(10), || {
            std::net::TcpStream::connect(addr).ok()
        });
        Some(Self { _process: process, dir, resource: format!("ssh=tcp:{addr}") })
    }

    fn options(&self, bed: &Bed) -> Vec<String> {
        let proxy = format!("{} connect ssh --stdio", env!("CARGO_BIN_EXE_switchback"));
        [
            format!("ProxyCommand={proxy}"),
            format!("IdentityFile={}", self.dir.join("user").display()),
            "IdentitiesOnly=yes".into(),
            "StrictHostKeyChecking=no".into(),
            format!("UserKnownHostsFile={}", bed.home().join("known_hosts").display()),
            "LogLevel=ERROR".into(),
        ]
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .collect()
    }

    fn command(&self, bed: &Bed, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command
            .args(["-F", "none"])
            .args(self.options(bed))
            .env("SWITCHBACK_LOGIN", &bed.login)
            .env("XDG_STATE_HOME", bed.home().join("state"))
            .env("RUST_LOG", "error");
        command
    }
}

fn sha256(path: &Path) -> String {
    let mut file =
        fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).unwrap();
    format!("{:x}", hasher.finalize())
}

#[test]
fn ssh_reaches_a_server_that_has_no_listener_facing_the_client() {
    for io in IOS {
        let mut bed = Bed::without_agent(io, None);
        let Some(sshd) = Sshd::start(bed.home()) else { return };
        bed.offer(std::slice::from_ref(&sshd.resource));
        let greeting = Output::of(sshd.command(&bed, "ssh").args([
            "nobody-asks",
            "echo",
            "reached",
            "$((6*7))",
        ]));
        assert_eq!(greeting.ok().stdout, "reached 42\n");
        // An exit status crosses too, and a large answer arrives whole.
        let counted =
            Output::of(sshd.command(&bed, "ssh").args(["x", "head -c 5000000 /dev/zero; exit 7"]));
        assert_eq!((counted.code, counted.stdout.len()), (7, 5_000_000));
    }
}

#[test]
fn scp_of_256_mib_each_way_survives_two_gateway_kills_with_equal_hashes() {
    const SIZE: usize = 256 << 20;
    for io in IOS {
        let mut bed = Bed::without_agent(io, None);
        let Some(sshd) = Sshd::start(bed.home()) else { return };
        bed.offer(std::slice::from_ref(&sshd.resource));
        let (here, there, back) =
            (bed.home().join("here"), bed.home().join("there"), bed.home().join("back"));
        let mut content = vec![0; SIZE];
        Bytes::seeded(7).fill(&mut content);
        fs::write(&here, &content).unwrap();
        drop(content);

        let remote = |path: &Path| format!("x:{}", path.display());
        for (from, to, written) in [
            (here.display().to_string(), remote(&there), &there),
            (remote(&there), back.display().to_string(), &back),
        ] {
            // 400 Mbit/s: slow enough that both kills fall into the transfer.
            let mut copy =
                Process::start(sshd.command(&bed, "scp").args(["-l", "400000", &from, &to]));
            for part in 1..=2u64 {
                let reached = SIZE as u64 / 4 * part;
                eventually("the copy to get on", Duration::from_secs(60), || {
                    assert!(!copy.has_ended(), "the copy ended early: {}", copy.stderr());
                    (fs::metadata(written).map_or(0, |meta| meta.len()) >= reached).then_some(())
                });
                bed.kill_server();
                std::thread::sleep(Duration::from_millis(300));
                bed.restart_server();
            }
            assert_eq!(copy.wait(Duration::from_secs(120)), 0, "{}", copy.stderr());
            assert_eq!(sha256(&here), sha256(written), "{io:?}");
        }
    }
}
