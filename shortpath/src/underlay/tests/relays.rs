//! Promises about relays: where one is asked, and what is told when it does not work.
use super::*;

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
