//! OpenSSH through the gateway, with `switchback connect ssh --stdio` as its ProxyCommand.
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{Bed, Bytes, IOS, Output, Process, Sshd, eventually, sha256};

fn ssh(sshd: &Sshd, bed: &Bed, tool: &str) -> Command {
    sshd.command(tool, bed.home(), &bed.login)
}

#[test]
fn ssh_reaches_a_server_that_has_no_listener_facing_the_client() {
    for io in IOS {
        let mut bed = Bed::without_agent(io, None);
        let Some(sshd) = Sshd::start(bed.home()) else { return };
        bed.offer(std::slice::from_ref(&sshd.resource));
        let greeting = Output::of(ssh(&sshd, &bed, "ssh").args([
            "nobody-asks",
            "echo",
            "reached",
            "$((6*7))",
        ]));
        assert_eq!(greeting.ok().stdout, "reached 42\n");
        // An exit status crosses too, and a large answer arrives whole.
        let counted =
            Output::of(ssh(&sshd, &bed, "ssh").args(["x", "head -c 5000000 /dev/zero; exit 7"]));
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
                Process::start(ssh(&sshd, &bed, "scp").args(["-l", "400000", &from, &to]));
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
