//! The lab on real namespaces: what it promises to whoever tests with it. `NETLAB=require` turns a
//! missing permission or program into a failure.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use switchback_bench::lab::nat::{Mapping, NAMED, NatSettings, PortAssignment};
use switchback_bench::lab::probe::{self, Behaviour, Ports};
use switchback_bench::lab::{self, Lab, Subnet, Topology, referee};

const ANY: (Ipv4Addr, u16) = (Ipv4Addr::UNSPECIFIED, 0);
const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 5000);
const SILENCE: Duration = Duration::from_millis(200);

fn skip() -> bool {
    lab::skip(lab::unavailable())
}

fn start(topology: &str) -> Lab {
    Lab::start(&topology.parse().unwrap(), 7).unwrap()
}

/// Sockets of the client (any port) and of the server.
fn ends(lab: &Lab) -> (UdpSocket, UdpSocket) {
    let client = probe::socket(lab.host("client"), ANY).unwrap();
    let server = probe::socket(lab.host("server"), SERVER).unwrap();
    (client, server)
}

/// Whether a packet to `at` comes out of `to` within [`SILENCE`].
fn reaches(from: &UdpSocket, at: SocketAddr, to: &UdpSocket) -> bool {
    let word = rand::random::<[u8; 16]>();
    from.send_to(&word, at).unwrap();
    to.set_read_timeout(Some(SILENCE)).unwrap();
    let mut heard = [0; 64];
    while let Ok(bytes) = to.recv(&mut heard) {
        if heard[..bytes] == word {
            return true;
        }
    }
    false
}

fn median_delay(from: &UdpSocket, to: &UdpSocket) -> Duration {
    let delays = probe::delays(from, to, 50, Duration::from_millis(2)).unwrap();
    delays[delays.len() / 2]
}

/// The share of `packets` that arrive, sent in a burst.
fn arriving(from: &UdpSocket, to: &UdpSocket, packets: u32) -> f64 {
    let delays = probe::delays(from, to, packets, Duration::ZERO).unwrap();
    delays.len() as f64 / f64::from(packets)
}

#[test]
fn a_delay_is_what_it_was_set_to_and_changes_while_packets_flow() {
    if skip() {
        return;
    }
    let begun = Instant::now();
    let lab = start("pair");
    println!("pair is up after {:?}", begun.elapsed());
    let (client, server) = ends(&lab);
    for set in [20, 5, 0] {
        lab.link("client").set(&format!("delay={set}ms")).unwrap();
        let seen = median_delay(&client, &server);
        println!("delay={set}ms: median {seen:?}");
        let least = Duration::from_millis(set);
        assert!(seen >= least && seen < least + Duration::from_millis(5), "{set} ms: {seen:?}");
    }
    lab.link("client").set("down.delay=30ms").unwrap();
    let (up, back) = (median_delay(&client, &server), probe::mapped_address(&client, &server));
    assert!(up < Duration::from_millis(10), "only the other direction: {up:?}");
    let begun = Instant::now();
    assert!(reaches(&server, back.unwrap(), &client));
    assert!(begun.elapsed() >= Duration::from_millis(30));
}

#[test]
fn loss_rate_and_blackhole_take_effect_on_live_traffic() {
    if skip() {
        return;
    }
    let lab = start("pair");
    let (client, server) = ends(&lab);
    lab.link("client").set("loss=30%").unwrap();
    let share = arriving(&client, &server, 400);
    assert!((0.6..0.8).contains(&share), "30 % of 400 lost: {share}");
    lab.link("client").set("loss=0%,rate=1mbit").unwrap();
    let begun = Instant::now();
    let (word, mut heard) = ([7; 1222], [0; 2000]);
    for _ in 0..20 {
        client.send_to(&word, SERVER).unwrap();
    }
    for _ in 0..20 {
        server.recv(&mut heard).unwrap();
    }
    // 20 packets of 1250 bytes are 200 ms of 1 Mbit/s.
    assert!(begun.elapsed() >= Duration::from_millis(195), "{:?}", begun.elapsed());
    lab.link("client").set("rate=off,blackhole").unwrap();
    assert!(!reaches(&client, SERVER.into(), &server));
    lab.link("client").set("blackhole=off").unwrap();
    assert!(reaches(&client, SERVER.into(), &server));
    let (up, _) = lab.link("client").stats();
    assert!(up.lost > 60 && up.blackholed >= 1, "{up:?}");
    assert!(lab.link("client").set("loss=maybe").is_err());
}

#[test]
fn every_nat_type_behaves_as_named() {
    if skip() {
        return;
    }
    let mut kinds: Vec<NatSettings> =
        NAMED.iter().map(|(name, ..)| name.parse().unwrap()).collect();
    kinds.extend(
        ["adm/adf/random", "apdm/eif/keep"].map(|text| text.parse::<NatSettings>().unwrap()),
    );
    thread::scope(|scope| {
        for kind in kinds {
            scope.spawn(move || {
                let lab = start(&format!("pair:client-nat={kind}"));
                let seen = probe::behaviour(&lab, "client", "server", SILENCE).unwrap();
                let routed = kind.mapping == Mapping::None;
                let ports = match kind.ports {
                    PortAssignment::Random if !routed => Ports::Scattered,
                    PortAssignment::Sequential if !routed => Ports::Sequential,
                    _ => Ports::Kept,
                };
                let NatSettings { mapping, filtering, .. } = kind;
                let hairpin = kind.hairpin || routed;
                assert_eq!(seen, Behaviour { mapping, filtering, ports, hairpin }, "{kind}");
            });
        }
    });
}

#[test]
fn coturn_says_the_same_of_our_nats() {
    if skip() {
        return;
    }
    for kind in ["full-cone,hairpin", "symmetric"] {
        let lab = start(&format!("pair:client-nat={kind}"));
        match referee::coturn(&lab, "client", "server").unwrap() {
            Some(verdict) => assert!(verdict.agrees_with(&kind.parse().unwrap()), "{verdict}"),
            None => assert!(!lab::skip(Some("coturn is not installed".into()))),
        }
    }
}

#[test]
fn a_mapping_idle_for_its_timeout_is_gone() {
    if skip() {
        return;
    }
    let lab = start("pair:client-nat=port-restricted,timeout=2s");
    let (client, server) = ends(&lab);
    let at = probe::mapped_address(&client, &server).unwrap();
    thread::sleep(Duration::from_millis(1500));
    assert!(reaches(&server, at, &client), "after 1.5 s of 2 s");
    let at = probe::mapped_address(&client, &server).unwrap();
    thread::sleep(Duration::from_millis(2200));
    assert!(!reaches(&server, at, &client), "after 2.2 s of 2 s");
    assert_eq!(lab.nat("client-nat").mappings(), []);
}

#[test]
fn a_rebinding_nat_gives_the_same_socket_another_endpoint() {
    if skip() {
        return;
    }
    let lab = start("pair:client-nat=full-cone");
    let (client, server) = ends(&lab);
    let before = probe::mapped_address(&client, &server).unwrap();
    lab.nat("client-nat").rebind(None).unwrap();
    let after = probe::mapped_address(&client, &server).unwrap();
    assert_eq!(before.ip(), after.ip());
    assert_ne!(before.port(), after.port());
    assert!(!reaches(&server, before, &client), "the old endpoint is nobody's");
    for public in ["203.0.113.9", "100.100.0.1"] {
        lab.nat("client-nat").rebind(Some(public.parse().unwrap())).unwrap();
        let after = probe::mapped_address(&client, &server).unwrap();
        assert_eq!(after.ip().to_string(), public);
        assert!(reaches(&server, after, &client));
    }
}

#[test]
fn blocked_udp_is_silent_or_refused_as_asked_for_and_tcp_goes_on() {
    if skip() {
        return;
    }
    let lab = start("pair");
    let (client, server) = ends(&lab);
    let listener = listen(&lab, "server", SERVER);
    let mut stream = connect(&lab, "client", SERVER.into());
    let (mut far, _) = listener.accept().unwrap();
    assert!(reaches(&client, SERVER.into(), &server));
    lab.nat("client-nat").block("udp=drop").unwrap();
    assert!(!reaches(&client, SERVER.into(), &server), "an established flow obeys, too");
    lab.nat("client-nat").block("udp=reject").unwrap();
    client.connect(SERVER).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    client.send(b"x").unwrap();
    let refused = client.recv(&mut [0; 8]).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    stream.write_all(b"tcp lives").unwrap();
    let mut heard = [0; 9];
    far.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"tcp lives");
    lab.nat("client-nat").block("udp=allow").unwrap();
    assert!(reaches(&client_again(&lab), SERVER.into(), &server));
}

fn client_again(lab: &Lab) -> UdpSocket {
    probe::socket(lab.host("client"), ANY).unwrap()
}

#[test]
fn a_socket_outlives_its_hosts_change_of_address() {
    if skip() {
        return;
    }
    let lab = start("pair");
    let (client, server) = ends(&lab);
    assert!(reaches(&client, SERVER.into(), &server));
    let host = lab.host("client");
    for (old, new) in [("192.168.1.2/24", "192.168.1.77/24"), ("192.168.1.77/24", "10.9.8.7/16")] {
        host.readdress(old, new).unwrap();
        let seen = probe::mapped_address(&client, &server).unwrap();
        assert!(reaches(&server, seen, &client), "and back, at {new}");
        let inside: Vec<_> = lab.nat("client-nat").mappings();
        let own = new.parse::<Subnet>().unwrap().ip;
        assert!(inside.iter().any(|mapping| mapping.inside.ip() == own), "{inside:?}");
    }
    assert_eq!(host.addresses(), ["10.9.8.7".parse::<std::net::IpAddr>().unwrap()]);
    assert!(host.readdress("192.168.1.2/24", "192.168.1.3/24").is_err(), "it has it no more");
}

#[test]
fn tcp_crosses_nats_delay_and_loss_byte_for_byte() {
    if skip() {
        return;
    }
    let lab = start("double-nat:client-link=delay=5ms,loss=1%");
    let listener = listen(&lab, "server", SERVER);
    let sent: Vec<u8> =
        (0..1_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let begun = Instant::now();
    let mut stream = connect(&lab, "client", SERVER.into());
    assert!(begun.elapsed() >= Duration::from_millis(10), "one round trip");
    stream.write_all(&sent).unwrap();
    drop(stream);
    assert!(receiver.join().unwrap() == sent);
}

#[test]
fn a_small_mtu_is_told_to_the_sender_or_swallowed() {
    if skip() {
        return;
    }
    let lab = start("pair:client-nat=port-restricted");
    let (client, server) = ends(&lab);
    // Behind the NAT, so that its ICMP error must find its way back through it.
    lab.link("client-wan").set("mtu=1280").unwrap();
    set_ip_mtu_discover(&client, Ipv4PathMtuDiscovery::DO).unwrap();
    client.connect(SERVER).unwrap();
    let big = [0; 1400];
    client.send(&big).unwrap();
    let too_big = Some(Errno::MSGSIZE.raw_os_error());
    let told = wait_for(|| client.send(&big).is_err_and(|error| error.raw_os_error() == too_big));
    assert!(told, "EMSGSIZE after the ICMP error");
    // What was sent before the error came may be reported once more.
    assert!(wait_for(|| client.send(&[1; 1200]).is_ok()));
    server.set_read_timeout(Some(SILENCE)).unwrap();
    assert_eq!(server.recv(&mut [0; 2000]).unwrap(), 1200);
    lab.link("client-wan").set("mtu=1200/silent").unwrap();
    client.send(&[1; 1230]).unwrap();
    assert!(server.recv(&mut [0; 2000]).is_err(), "a black hole for what is larger");
    let (up, _) = lab.link("client-wan").stats();
    assert!(up.too_big >= 2, "{up:?}");
}

/// Whether it comes true within 2 s.
fn wait_for(mut condition: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        if condition() {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn neighbours_behind_one_nat_reach_each_other_directly_and_the_internet_does_not() {
    if skip() {
        return;
    }
    let lab = start("same-lan");
    let client = probe::socket(lab.host("client"), ANY).unwrap();
    let agent = probe::socket(lab.host("agent"), ([192, 168, 1, 3], 6000)).unwrap();
    let server = probe::socket(lab.host("server"), SERVER).unwrap();
    assert!(reaches(&client, ([192, 168, 1, 3], 6000).into(), &agent));
    assert!(!reaches(&server, ([192, 168, 1, 3], 6000).into(), &agent));
    assert_eq!(lab.nat("lan-nat").stats().outbound, 0, "the NAT is not in the way");
}

#[test]
fn without_nats_hosts_see_each_others_own_addresses() {
    if skip() {
        return;
    }
    let lab = start("routed");
    let client = probe::socket(lab.host("client"), ([192, 168, 1, 2], 6000)).unwrap();
    let agent = probe::socket(lab.host("agent"), ([192, 168, 2, 2], 6000)).unwrap();
    let seen = probe::mapped_address(&client, &agent).unwrap();
    assert_eq!(seen, ([192, 168, 1, 2], 6000).into());
}

#[test]
fn ipv6_is_not_translated_but_filtered_by_state() {
    if skip() {
        return;
    }
    let lab = start("ipv6");
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    let client = probe::socket(lab.host("client"), at("[2001:db8:1::2]:6000")).unwrap();
    let agent = probe::socket(lab.host("agent"), at("[2001:db8:2::2]:6000")).unwrap();
    let server = probe::socket(lab.host("server"), at("[2001:db8:5::1]:6000")).unwrap();
    assert_eq!(probe::mapped_address(&client, &server).unwrap(), at("[2001:db8:1::2]:6000"));
    assert!(reaches(&server, at("[2001:db8:1::2]:6000"), &client), "an answer");
    assert!(!reaches(&server, at("[2001:db8:2::2]:6000"), &agent), "unsolicited");
    assert!(!reaches(&client, at("[2001:db8:2::2]:6000"), &agent), "opens only its own side");
    assert!(reaches(&agent, at("[2001:db8:1::2]:6000"), &client), "punched");
    assert!(reaches(&client, at("[2001:db8:2::2]:6000"), &agent), "both ways");
    let (v4_client, v4_server) = ends(&lab);
    let seen = probe::mapped_address(&v4_client, &v4_server).unwrap();
    assert_eq!(seen.ip().to_string(), "203.0.113.2", "and IPv4 is");
}

#[test]
fn the_kernels_own_nat_stands_in_the_same_wires() {
    if lab::skip(lab::kernel_unavailable()) {
        return;
    }
    let lab = start("kernel:agent-nat=masquerade-random,client-link=delay=10ms");
    let seen = probe::behaviour(&lab, "client", "server", SILENCE).unwrap();
    let plain: NatSettings = "port-restricted".parse().unwrap();
    assert_eq!((seen.mapping, seen.filtering), (plain.mapping, plain.filtering));
    assert_eq!((seen.ports, seen.hairpin), (Ports::Kept, false));
    let random = probe::behaviour(&lab, "agent", "server", SILENCE).unwrap();
    assert_eq!(random.mapping, Mapping::AddressAndPortDependent);
    assert_eq!(random.ports, Ports::Scattered);
    let (client, server) = ends_at(&lab, 5001);
    assert!(median_delay(&client, &server) >= Duration::from_millis(10));
}

fn ends_at(lab: &Lab, port: u16) -> (UdpSocket, UdpSocket) {
    let client = probe::socket(lab.host("client"), ANY).unwrap();
    (client, probe::socket(lab.host("server"), (SERVER.0, port)).unwrap())
}

#[test]
fn four_labs_at_once_do_not_know_of_each_other() {
    if skip() {
        return;
    }
    let labs: Vec<Lab> = thread::scope(|scope| {
        let starting: Vec<_> = (0..4).map(|_| scope.spawn(|| start("pair"))).collect();
        starting.into_iter().map(|lab| lab.join().unwrap()).collect()
    });
    for (index, lab) in labs.iter().enumerate() {
        lab.link("client").set(&format!("delay={}ms", index * 10)).unwrap();
    }
    thread::scope(|scope| {
        for (index, lab) in labs.iter().enumerate() {
            scope.spawn(move || {
                let (client, server) = ends(lab);
                let (seen, set) = (median_delay(&client, &server), index as u64 * 10);
                let least = Duration::from_millis(set);
                assert!(
                    seen >= least && seen < least + Duration::from_millis(9),
                    "{set}: {seen:?}"
                );
            });
        }
    });
}

#[test]
fn a_topology_of_ones_own_may_have_hosts_with_several_interfaces() {
    if skip() {
        return;
    }
    let topology = Topology::from_toml(
        r#"
        name = "two homes"
        hosts = [{ name = "client" }, { name = "server" }]
        routers = [{ name = "dsl", nat = "symmetric" }, { name = "lte", nat = "cgn" }, { name = "net" }]
        links = [
          { name = "dsl", from = { at = "client", addresses = ["192.168.1.2/24"] }, to = { at = "dsl", addresses = ["192.168.1.1/24"] } },
          { name = "lte", from = { at = "client", addresses = ["10.0.0.2/24"] }, to = { at = "lte", addresses = ["10.0.0.1/24"] }, settings = "delay=3ms" },
          { name = "dsl-wan", from = { at = "dsl", addresses = ["203.0.113.2/24"] }, to = { at = "net", addresses = ["203.0.113.1/24"] } },
          { name = "lte-wan", from = { at = "lte", addresses = ["198.51.100.2/24"] }, to = { at = "net", addresses = ["198.51.100.1/24"] } },
          { name = "server", from = { at = "server", addresses = ["192.0.2.1/24"] }, to = { at = "net", addresses = ["192.0.2.254/24"] } },
        ]
        "#,
    )
    .unwrap();
    let lab = Lab::start(&topology, 1).unwrap();
    let (client, server) = ends(&lab);
    let first = probe::mapped_address(&client, &server).unwrap();
    assert_eq!(first.ip().to_string(), "203.0.113.2", "the first link out is the default route");
    let bound = lab.host("client").enter(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        socket.bind_device(Some(b"eth1"))?;
        io::Result::Ok(UdpSocket::from(socket))
    });
    let second = probe::mapped_address(&bound.unwrap().unwrap(), &server).unwrap();
    assert_eq!(second.ip().to_string(), "198.51.100.2");
}

#[test]
fn programs_run_in_their_host_and_end_with_the_lab() {
    if skip() {
        return;
    }
    let lab = start("pair");
    let server = lab.host("server");
    let output = server.command("cat").args(["/proc/thread-self/net/dev"]).output().unwrap();
    let interfaces = String::from_utf8_lossy(&output.stdout);
    assert!(interfaces.contains("eth0"), "{interfaces}");
    assert!(server.command("no-such-program").spawn().is_err());
    // One that has left its parent's session and ignores what can be ignored.
    let script = "trap '' HUP TERM INT; setsid sleep 1000 & echo $!; exec sleep 1000";
    let mut shell = server.command("sh");
    let mut child = shell.args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    drop(lab);
    assert!(wait_for(|| child.try_wait().unwrap().is_some()), "the program");
    assert!(wait_for(|| has_ended(line.trim())), "what it started");
}

/// A zombie nobody has waited for has ended as well.
fn has_ended(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.starts_with(" Z"))
}

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchback-bench"));
    command.arg("lab").args(arguments);
    command
}

#[test]
fn a_lab_killed_outright_leaves_no_process() {
    if skip() {
        return;
    }
    let mut lab = bench(&["run", "pair", "--", "sh", "-c", "echo $$; exec sleep 1000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(lab.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid = line.trim();
    assert!(!has_ended(pid));
    let namespace = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_ne!(namespace, std::fs::read_link("/proc/self/ns/net").unwrap());
    lab.kill().unwrap();
    lab.wait().unwrap();
    assert!(wait_for(|| has_ended(pid)), "the program in the lab");
}

#[test]
fn the_command_line_runs_changes_and_shows_a_lab() {
    if skip() {
        return;
    }
    let own = env!("CARGO_BIN_EXE_switchback-bench");
    let script = format!(
        "set -e; {own} lab set client loss=5%,up.delay=1ms; {own} lab set client-nat symmetric,udp=drop,rebind; \
         {own} lab readdress client 192.168.1.2/24 192.168.1.9/24; \
         {own} lab set client colour=red 2>&1 || true; {own} lab status --json; exit 7"
    );
    let output =
        bench(&["run", "pair", "--seed", "3", "--", "sh", "-c", &script]).output().unwrap();
    let (text, errors) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(7), "{text}{errors}");
    assert!(text.contains("colour=red"), "the refusal names it: {text}");
    let json = &text[text.find("\n{").unwrap()..];
    let status: lab::Status = serde_json::from_str(json).unwrap();
    assert_eq!(status.seed, 3);
    assert_eq!(status.links[0].up.settings, "delay=1ms,loss=5%");
    assert_eq!(status.links[0].down.settings, "loss=5%");
    assert_eq!(status.nats[0].settings, "symmetric");
    assert_eq!(status.nats[0].policy, "udp=drop");
    assert!(errors.contains("SWITCHBACK_LAB="), "{errors}");
}

#[test]
fn a_user_namespace_is_enough_for_a_lab() {
    let alone = |command: &[&str]| {
        Command::new("unshare").arg("--map-root-user").arg("--net").args(command).output()
    };
    let may = alone(&["true"]).is_ok_and(|output| output.status.success());
    if skip() || lab::skip((!may).then(|| "no user namespaces here".to_owned())) {
        return;
    }
    let own = env!("CARGO_BIN_EXE_switchback-bench");
    let status = format!("{own} lab status --json");
    let run = [own, "lab", "run", "double-nat", "--", "sh", "-c", &status];
    let output = alone(&run).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    let status: lab::Status = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(status.topology, "double-nat");
    assert!(status.links.iter().any(|link| link.name == "server"), "{text}");
}

#[test]
fn the_command_line_explains_what_it_cannot_do() {
    for (arguments, hint) in [
        (&["run", "ring", "--", "true"][..], "pair, double-nat"),
        (&["topologies", "pair:client-nat=conical"], "symmetric"),
        (&["status", "--lab", "nobody"], "is it running"),
        (&["topologies", "/nonexistent.toml"], "/nonexistent.toml"),
    ] {
        let output = bench(arguments).env_remove("SWITCHBACK_LAB").output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(errors.contains(hint), "{arguments:?}: {errors}");
    }
    let output = bench(&["topologies", "pair", "--toml"]).output().unwrap();
    let toml = String::from_utf8(output.stdout).unwrap();
    assert_eq!(Topology::from_toml(&toml).unwrap(), "pair".parse().unwrap());
}

fn listen(lab: &Lab, host: &str, at: (Ipv4Addr, u16)) -> TcpListener {
    lab.host(host).enter(|| TcpListener::bind(at)).unwrap().unwrap()
}

fn connect(lab: &Lab, host: &str, to: SocketAddr) -> TcpStream {
    lab.host(host).enter(|| TcpStream::connect(to)).unwrap().unwrap()
}
