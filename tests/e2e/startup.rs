//! What can go wrong before anything runs, and what it says.
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use switchback_control::Code;
use tempfile::TempDir;

use crate::support::{Bed, Io, Output, program, switchback};

fn serve(home: &TempDir, args: &[&str]) -> Output {
    let mut command = switchback(home.path());
    command.args(["serve", "--json", "--data"]).arg(home.path().join("data")).args(args);
    Output::of(&mut command)
}

fn refused(output: &Output, code: Code) {
    assert_eq!(output.refusal(), code.as_str(), "{output:?}");
    assert_eq!(output.code, i32::from(code.exit() as u8));
    assert!(output.stderr.contains(code.remedy()), "the remedy is told: {output:?}");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let home = TempDir::new().unwrap();
    let output = serve(&home, &["--listen", &taken.local_addr().unwrap().to_string()]);
    refused(&output, Code::AddressInUse);
    assert!(output.stderr.contains(&taken.local_addr().unwrap().port().to_string()));
}

#[test]
fn an_address_of_another_machine_is_named() {
    let home = TempDir::new().unwrap();
    refused(&serve(&home, &["--listen", "192.0.2.1:4443"]), Code::AddressUnavailable);
}

#[test]
fn port_443_without_privilege_says_how_to_get_it() {
    let Some(setpriv) = program("setpriv") else { return };
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: dropping privileges needs root");
        return;
    }
    let home = TempDir::new().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // The build directory may be closed to others: give the unprivileged user a copy.
    let binary = home.path().join("switchback");
    fs::copy(env!("CARGO_BIN_EXE_switchback"), &binary).unwrap();
    let mut command = Command::new(setpriv);
    command
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ])
        .arg(&binary)
        .args(["serve", "--json", "--listen", "127.0.0.1:443", "--data"])
        .arg(home.path().join("data"));
    let output = Output::of(&mut command);
    refused(&output, Code::PortNotPermitted);
}

#[test]
fn a_corrupt_or_unwritable_data_directory_is_named() {
    let mut bed = Bed::without_agent(Io::Epoll, None);
    bed.kill_server();
    let database = fs::read_dir(bed.data())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "db"))
        .expect("the database");
    for entry in fs::read_dir(bed.data()).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with("-wal") || name.ends_with("-shm") {
            fs::remove_file(entry).unwrap();
        }
    }
    fs::write(&database, b"this is no database at all, whatever its name says").unwrap();
    let mut command = switchback(bed.home());
    command.args(["serve", "--json", "--listen", "127.0.0.1:0", "--data"]).arg(bed.data());
    refused(&Output::of(&mut command), Code::DataCorrupt);

    let home = TempDir::new().unwrap();
    fs::write(home.path().join("data"), b"a file where a directory should be").unwrap();
    refused(&serve(&home, &["--listen", "127.0.0.1:0"]), Code::DataDirUnusable);
}

#[test]
fn two_servers_do_not_share_a_data_directory() {
    let bed = Bed::without_agent(Io::Epoll, None);
    let mut command = switchback(bed.home());
    command.args(["serve", "--json", "--listen", "127.0.0.1:0", "--data"]).arg(bed.data());
    let output = Output::of(&mut command);
    refused(&output, Code::DataDirUnusable);
}

#[test]
fn certificates_that_do_not_parse_or_match_are_refused() {
    let home = TempDir::new().unwrap();
    let (cert, key) = (home.path().join("cert.pem"), home.path().join("key.pem"));
    fs::write(&cert, "not a certificate").unwrap();
    fs::write(&key, "not a key").unwrap();
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--tls-cert",
        cert.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
    ];
    refused(&serve(&home, &args), Code::CertificateUnusable);
}

#[test]
fn the_data_directory_is_closed_to_others_and_secrets_stay_out_of_logs() {
    let echo = crate::support::EchoTarget::start();
    let bed = Bed::start(Io::Uring, &[echo.resource("echo")]);
    let (connect, _local) = bed.forward("echo");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&bed.data()), 0o700);
    for entry in fs::read_dir(bed.data()).unwrap().map(|entry| entry.unwrap().path()) {
        assert_eq!(mode(&entry) & 0o077, 0, "{}", entry.display());
    }
    // Everything ran with RUST_LOG=debug.
    let logs = [bed.server().stderr(), bed.agent().stderr(), connect.stderr()].concat();
    assert!(logs.len() > 200, "there are logs to look at");
    for secret in [&bed.join, &bed.login] {
        let body = secret.split_once('_').unwrap().1;
        assert!(!logs.contains(body));
        let json = data_encoding::BASE64URL_NOPAD.decode(body.as_bytes()).unwrap();
        let token = serde_json::from_slice::<serde_json::Value>(&json).unwrap()["t"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(token.len() >= 20 && !logs.contains(&token));
    }
    let state = fs::read(bed.home().join("agent/enrolment.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    let kept = state["key"].as_str().unwrap();
    assert!(kept.len() >= 100 && !logs.contains(kept), "no key in a log");
    // Assertions begin with the same header, whoever signs in.
    assert!(!logs.contains("eyJ0eXAi") && !logs.contains("eyJhbGci"), "no assertion in a log");
    assert!(
        !logs.contains(".client.switchback") && !logs.contains(".agent.switchback"),
        "no ticket in a log"
    );
}

#[test]
fn an_agent_takes_its_join_string_from_standard_input() {
    let bed = Bed::without_agent(Io::Uring, None);
    let mut agent = switchback(bed.home())
        .args(["agent", "--json", "--join", "-", "--resource", "a=tcp:127.0.0.1:9"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    agent.stdin.take().unwrap().write_all(format!("{}\n", bed.join).as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(agent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(line.contains(&bed.addr.to_string()), "{line}");
}
