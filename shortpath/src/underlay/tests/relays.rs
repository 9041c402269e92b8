//! Promises about relays: where one is asked, and what is told when it does not work.
use super::*;
use crate::path::lab_server::Server;

/// Waits until an allocation is asked for at this socket.
async fn asked(relay: &UdpSocket) {
    let mut buffer = [0; 500];
    let asked = async { while relay.recv(&mut buffer).await.is_err() || buffer[..2] != [0, 3] {} };
    timeout(PATIENCE, asked).await.expect("no allocation was asked for");
}

async fn silent() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// What lets an end use the relay at the gateway's addresses.
fn at_gateway() -> Option<RelayAccess> {
    let (username, password) = ("name".into(), "secret".into());
    Some(RelayAccess { server: RelayServer::Gateway, username, password })
}

#[tokio::test]
async fn a_gateway_whose_first_address_has_no_udp_is_asked_for_a_relay_at_the_next() {
    let ((first, one_at), (second, two_at)) = (silent().await, silent().await);
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut ends = ends(&one, &two, UdpPolicy { relay: true, ..UdpPolicy::NONE });
    ends.client.plan.as_mut().unwrap().relay = at_gateway();
    ends.client.search();
    // Its name resolves only now: the search did not wait for that, and the relay is asked then.
    ends.client.viewed(|view| view.reasons.contains(&"relay_unresolved")).await;
    one.set_servers(vec![one_at, two_at]);
    asked(&first).await;
    asked(&second).await;
}

#[tokio::test]
async fn a_relay_whose_name_does_not_resolve_keeps_no_direct_path_waiting() {
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let nowhere = |password: &str| {
        let (server, password) = (RelayServer::Named("no port".into()), password.to_owned());
        Some(RelayAccess { server, username: "name".into(), password })
    };
    let mut ends = ends(&one, &two, UdpPolicy::ALL);
    for end in [&mut ends.client, &mut ends.agent] {
        end.plan.as_mut().unwrap().relay = nowhere("secret");
        end.search();
    }
    ends.carried_by(LegKind::UdpDirect).await;
    let mut relayed = super::ends(&one, &two, UdpPolicy { relay: true, ..UdpPolicy::NONE });
    relayed.client.plan.as_mut().unwrap().relay = nowhere("secret");
    relayed.client.search();
    relayed.client.viewed(|view| view.reasons.contains(&"relay_unresolved")).await;
}

/// It refuses allocations, or channels.
fn lab_server(refuses: Option<u16>, forbids: bool) -> Server {
    let mut server = Server::new();
    (server.refuses, server.forbids) = (refuses, forbids);
    server
}

/// A relay that answers as the lab's does, at an address of this machine.
async fn relay_like(server: Server) -> (RelayAccess, JoinHandle<()>) {
    let (socket, address) = silent().await;
    let (username, password) = (server.username.clone(), server.password.clone());
    let answers = async move {
        let (mut server, mut buffer) = (server, [0; 2000]);
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            if let Some(answer) = server.answer(std::time::Instant::now(), from, &buffer[..len]) {
                let _ = socket.send_to(&answer, from).await;
            }
        }
    };
    (RelayAccess { server: named(address), username, password }, tokio::spawn(answers))
}

#[tokio::test]
async fn each_reason_why_a_relay_does_not_carry_is_told_until_it_does() {
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    for (server, reason) in [
        (lab_server(Some(486), false), "relay_full"),
        (lab_server(Some(508), false), "relay_full"),
        (lab_server(Some(400), false), "relay_refused"),
        (lab_server(Some(437), false), "relay_mismatch"),
        (lab_server(Some(401), false), "relay_unauthorized"),
        (lab_server(None, true), "relay_forbids_peer"),
    ] {
        let (access, server) = relay_like(server).await;
        let mut ends = ends(&one, &two, UdpPolicy { relay: true, ..UdpPolicy::NONE });
        ends.client.plan.as_mut().unwrap().relay = Some(access);
        ends.client.search();
        ends.client.viewed(|view| view.reasons.contains(&reason)).await;
        server.abort();
    }
}

#[tokio::test]
async fn a_relay_that_failed_is_told_as_failed_while_it_is_asked_again() {
    let ((first, one_at), (second, two_at)) = (silent().await, silent().await);
    let (one, two) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    let mut ends = ends(&one, &two, UdpPolicy { relay: true, ..UdpPolicy::NONE });
    ends.client.plan.as_mut().unwrap().relay = at_gateway();
    one.set_servers(vec![one_at, two_at]);
    ends.client.search();
    asked(&first).await;
    asked(&second).await;
    // The view is 100 ms old at most, and the second address is asked for another 12 s.
    sleep(Duration::from_millis(500)).await;
    assert!(ends.client.view().reasons.contains(&"relay_unreachable"), "{:?}", ends.client.view());
}

#[tokio::test]
async fn what_an_end_lacks_for_a_path_is_told() {
    let nowhere = NetworkFilter { allow: Vec::new(), deny: vec!["0.0.0.0/0".parse().unwrap()] };
    let plainly = || UnderlayConfig { ipv6: false, port_mapping: false, ..Default::default() };
    let without_address =
        Underlay::start(UnderlayConfig { networks: nowhere, ..plainly() }).unwrap();
    let (plain, peer) = (underlay(UnderlayConfig::default()), underlay(UnderlayConfig::default()));
    // The range's one port is the underlay's own, so that none is left for a relay.
    let without_socket = loop {
        let port = silent().await.1.port();
        let config = UnderlayConfig { ports: Some(port..=port), loopback: true, ..plainly() };
        if let Ok(underlay) = Underlay::start(config) {
            break underlay;
        }
    };
    let relay_only = UdpPolicy { relay: true, ..UdpPolicy::NONE };
    let relay = || relay_access("127.0.0.1:9".parse().unwrap(), "secret");
    for (underlay, policy, relay, reason) in [
        (&plain, relay_only, None, "no_relay"),
        (&plain, UdpPolicy::NONE, None, "policy_no_udp"),
        (&plain, UdpPolicy::ALL, None, "no_remote_candidates"),
        (&without_address, UdpPolicy::ALL, None, "no_local_candidates"),
        (&without_socket, relay_only, relay(), "relay_no_socket"),
    ] {
        let mut ends = ends(underlay, &peer, policy);
        let plan = ends.client.plan.as_mut().unwrap();
        plan.relay = relay;
        if reason == "no_remote_candidates" {
            plan.remote_candidates.clear();
        }
        ends.client.search();
        ends.client.viewed(|view| view.reasons.contains(&reason)).await;
    }
}
