//! Socket options that are refused with a reason, and services that see their clients' addresses.
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use switchback_control::Code;
use tempfile::TempDir;

use crate::support::{Bed, IOS, Io, Output, Process, eventually, program, switchback};

fn output(args: &[&str]) -> Output {
    let home = TempDir::new().unwrap();
    let mut command = switchback(home.path());
    command.current_dir(home.path()).args(args).arg("--json");
    Output::of(&mut command)
}

fn refused(args: &[&str], code: Code, named: &str) {
    let output = output(args);
    assert_eq!(output.refusal(), code.as_str(), "{output:?}");
    assert_eq!(output.code, i32::from(code.exit() as u8));
    assert!(output.stderr.contains(named), "{named}: {output:?}");
}

#[test]
fn a_tuning_that_cannot_be_is_refused_at_the_start_with_the_reason() {
    let serve = ["serve", "--data", "data", "--listen", "127.0.0.1:0", "--tuning"];
    for (tuning, code, named) in [
        ("colour=red", Code::UsageInvalid, "there is no option `colour`; there are congestion,"),
        ("dscp=64", Code::UsageInvalid, "expected 0 to 63, or default, le"),
        ("congestion=nosuch", Code::TuningUnsupported, "reno"),
    ] {
        refused(&[&serve[..], &[tuning]].concat(), code, named);
    }
    let home = TempDir::new().unwrap();
    let file = home.path().join("serve.toml");
    fs::write(&file, "listen = \"127.0.0.1:0\"\n[tuning]\nmss = 40\n").unwrap();
    let file = file.to_str().unwrap();
    refused(&["serve", "--data", "data", "--config", file], Code::ConfigInvalid, "88 to 32767");
}

#[test]
fn an_agent_refuses_a_resource_that_its_kernel_cannot_serve() {
    let bed = Bed::start(Io::Epoll, &["ssh=tcp:127.0.0.1:22".into()]);
    let join = bed.join.clone();
    let agent = ["agent", "--join", &join, "--name", "other", "--resource"];
    let resource = "a=tcp:127.0.0.1:22;congestion=nosuch";
    refused(
        &[&agent[..], &[resource]].concat(),
        Code::TuningUnsupported,
        "resource a, at the agent",
    );
    refused(
        &[&agent[..], &["a=tcp:127.0.0.1:22;proxy=v3"]].concat(),
        Code::UsageInvalid,
        "expected v2",
    );
}

/// What a service says of a connection that came through `bed`: the client's address and port, the gateway's, and more.
fn seen_by(bed: &mut Bed, service: SocketAddr) -> Vec<String> {
    eventually("the service to listen", Duration::from_secs(10), || {
        std::net::TcpStream::connect(service).ok()
    });
    bed.offer(&[format!("web=tcp:{service};proxy=v2;dscp=af21")]);
    let (_connect, local) = bed.forward("web");
    let curl = program("curl").expect("checked before");
    let mut get = Command::new(curl);
    get.args(["-sS", "--fail", "--max-time", "20"]).arg(format!("http://{local}/"));
    let mut seen: Vec<_> =
        Output::of(&mut get).ok().stdout.split_whitespace().map(str::to_owned).collect();
    let session = bed.sessions()[0]["id"].as_str().unwrap().to_owned();
    seen.push(session);
    seen
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The client is known by the address of its link, which the server logs.
fn expect_client(bed: &Bed, seen: &[String], peers: &str) {
    assert_eq!(seen[0], "127.0.0.1", "{seen:?}");
    let link = format!("peer=127.0.0.1:{}", seen[1]);
    assert!(peers.contains(&link), "{link} in {peers}");
    assert_eq!(format!("{}:{}", seen[2], seen[3]), bed.addr.to_string(), "{seen:?}");
}

#[test]
fn nginx_sees_the_clients_address() {
    let (Some(nginx), Some(_)) = (program("nginx"), program("curl")) else { return };
    for io in IOS {
        let mut bed = Bed::without_agent(io, None);
        let (service, home) = (free_address(), bed.home().display().to_string());
        let config = format!(
            "daemon off; user root; pid {home}/nginx.pid; error_log stderr; worker_processes 1;\n\
             events {{ worker_connections 64; }}\n\
             http {{ access_log off; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;\n\
             fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;\n\
             server {{ listen {service} proxy_protocol; location / {{ return 200 \"$proxy_protocol_addr \
             $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port\"; }} }} }}\n"
        );
        fs::write(bed.home().join("nginx.conf"), config).unwrap();
        let config = bed.home().join("nginx.conf");
        let _nginx = Process::start(Command::new(&nginx).arg("-c").arg(config));
        let seen = seen_by(&mut bed, service);
        expect_client(&bed, &seen, &bed.server().stderr());
    }
}

#[test]
fn haproxy_sees_the_clients_address_and_the_session() {
    let (Some(haproxy), Some(_)) = (program("haproxy"), program("curl")) else { return };
    let mut bed = Bed::without_agent(Io::Epoll, None);
    let service = free_address();
    let config = format!(
        "global\n  maxconn 64\ndefaults\n  mode http\n  timeout client 20s\n  timeout server 20s\n  timeout connect 5s\n\
         frontend web\n  bind {service} accept-proxy\n  http-request return status 200 content-type text/plain \
         lf-string \"%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_unique_id]\"\n"
    );
    let path = bed.home().join("haproxy.cfg");
    fs::write(&path, config).unwrap();
    let _haproxy = Process::start(Command::new(&haproxy).args(["-db", "-f"]).arg(path));
    let seen = seen_by(&mut bed, service);
    expect_client(&bed, &seen, &bed.server().stderr());
    assert_eq!(seen[4], seen[5], "the session's id came along: {seen:?}");
}
