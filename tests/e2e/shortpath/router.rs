//! Ports that a real router gives: miniupnpd beside the Linux kernel's own NAT.
use std::io::Write;
use std::process::{Command, Stdio};

use switchback_bench::lab::{Lab, Topology};

use super::scene::{Scene, echo};
use crate::support::{Process, program};

/// Two NATs of the kernel that give every destination another port. Their outer addresses are not those of documentation
/// (RFC 5737), which miniupnpd takes for none.
fn topology() -> Topology {
    let named: Topology = "kernel:client-nat=masquerade-random,agent-nat=masquerade-random"
        .parse()
        .expect("a named topology");
    let text = named.to_toml().expect("a topology as text");
    Topology::from_toml(&text.replace("203.0.113.", "11.0.0.")).expect("a topology")
}

/// Starts miniupnpd at the client's router, for UPnP alone; `None` after saying that it is not installed.
fn miniupnpd(scene: &Scene) -> Option<Process> {
    const CHAINS: &str = "
        table inet upnp {
            chain mapped { }
            chain leaving { }
            chain forwarded { }
            chain pre { type nat hook prerouting priority dstnat; jump mapped ; }
            chain post { type nat hook postrouting priority srcnat; jump leaving ; }
        }
        table inet fw {
            chain fw_forward { ct status dnat accept ; }
        }
        ";
    const SETTINGS: &str = "
        ext_ifname=wan0
        listening_ip=lan0
        enable_natpmp=no
        enable_upnp=yes
        secure_mode=yes
        upnp_table_name=upnp
        upnp_nat_table_name=upnp
        upnp_forward_chain=forwarded
        upnp_nat_chain=mapped
        upnp_nat_postrouting_chain=leaving
        uuid=6f6e6c79-6120-7465-7374-000000000001
        allow 1024-65535 192.168.1.0/24 1024-65535
        deny 0-65535 0.0.0.0/0 0-65535";
    let miniupnpd = program("miniupnpd")?;
    nft(&scene.lab, CHAINS);
    let settings = scene.home().join("miniupnpd.conf");
    let lines = SETTINGS.lines().map(|line| format!("{}\n", line.trim()));
    std::fs::write(&settings, lines.collect::<String>()).expect("a file");
    let mut command = Command::new(miniupnpd);
    command.arg("-d").arg("-f").arg(settings).arg("-P").arg(scene.home().join("miniupnpd.pid"));
    Some(Process::start_with(command, |command| scene.lab.host("client-nat").spawn(command)))
}

fn nft(lab: &Lab, rules: &str) {
    let mut command = Command::new(program("nft").expect("the lab has used it"));
    command.args(["-f", "-"]).stdin(Stdio::piped());
    let mut nft = lab.host("client-nat").spawn(command).expect("nft starts");
    nft.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("nft reads");
    assert!(nft.wait().expect("nft ends").success());
}

#[test]
fn a_port_that_a_router_maps_by_upnp_makes_two_random_nats_of_the_kernel_direct() {
    let Some(scene) = Scene::on(&topology()) else { return };
    let Some(router) = miniupnpd(&scene) else { return };
    let report = scene.ask(&["netcheck"]).ok().json();
    assert_eq!(report["nat_v4"]["mapping"], "address_and_port_dependent", "{report}");
    let mapping = &report["port_mapping"];
    assert_eq!(mapping["protocol"], "upnp", "{mapping}; {}", router.stderr());
    assert_eq!(mapping["router"], "192.168.1.1");
    let external = mapping["external"].as_str().expect("an address");
    assert!(external.starts_with("11.0.0.2:"), "{mapping}");
    let session = scene.connect();
    let mut stream = session.dial();
    echo(&mut stream, 100, 20);
    scene.expect_transport("UDP (Shortpath)");
    echo(&mut stream, 100, 20);
}
