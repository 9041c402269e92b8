//! Promises of the shell, over in-memory streams and over TLS on loopback.
use std::time::Duration;

use bytes::{Buf, Bytes};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::rope::Rope;
use super::*;
use crate::session::frame::{Frame, Mark, PAYLOAD_MAX};
use crate::session::{
    ChannelError, ChannelId, CloseReason, LegKind, RESET_DROPPED, RESET_SOCKET, Role, SessionConfig,
};
use crate::tls::{SessionKey, client_config, server_config};

struct Ends {
    client: SessionHandle,
    client_events: mpsc::Receiver<SessionEvent>,
    agent: SessionHandle,
    agent_events: mpsc::Receiver<SessionEvent>,
}

fn ends() -> Ends {
    let (client, client_events) = SessionHandle::start(Role::Client, "s", SessionConfig::default());
    let (agent, agent_events) = SessionHandle::start(Role::Agent, "s", SessionConfig::default());
    Ends { client, client_events, agent, agent_events }
}

impl Ends {
    /// A leg in memory, which dies when the task is aborted.
    fn join(&self) -> JoinHandle<()> {
        let (client, mut client_far) = tokio::io::duplex(64 * 1024);
        let (agent, mut agent_far) = tokio::io::duplex(64 * 1024);
        self.client.attach(client, LegKind::TcpReverse);
        self.agent.attach(agent, LegKind::TcpReverse);
        tokio::spawn(async move {
            drop(tokio::io::copy_bidirectional(&mut client_far, &mut agent_far).await);
        })
    }

    async fn incoming(&mut self) -> Channel {
        loop {
            match self.agent_events.recv().await.expect("the agent's session ended") {
                SessionEvent::Incoming(channel) => return channel,
                SessionEvent::Closed(reason) => panic!("closed: {reason:?}"),
                _ => {}
            }
        }
    }

    /// A channel the agent has seen.
    async fn channel(&mut self) -> (Channel, Channel) {
        let mut ours = self.client.open().unwrap();
        ours.write(Bytes::from_static(b"!")).await.unwrap();
        let mut theirs = self.incoming().await;
        assert_eq!(theirs.read().await.unwrap().unwrap(), "!");
        (ours, theirs)
    }
}

async fn closed(events: &mut mpsc::Receiver<SessionEvent>) -> CloseReason {
    while let Some(event) = events.recv().await {
        if let SessionEvent::Closed(reason) = event {
            assert!(events.recv().await.is_none(), "an event after the last");
            return reason;
        }
    }
    panic!("events ended without Closed");
}

async fn read_all(channel: &mut Channel) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(bytes) = channel.read().await.unwrap() {
        all.extend_from_slice(&bytes);
    }
    all
}

fn pattern(len: usize, salt: u64) -> Vec<u8> {
    (0..len as u64)
        .map(|at| ((at + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

async fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

async fn tls_leg(ends: &Ends, keys: &(SessionKey, SessionKey)) {
    let (near, far) = socket_pair().await;
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    let connector = TlsConnector::from(client_config(&keys.0, &keys.1.public()).unwrap());
    let acceptor = TlsAcceptor::from(server_config(&keys.1, &keys.0.public()).unwrap());
    let name = ServerName::try_from("leg.invalid").unwrap();
    let (near, far) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    ends.client.attach(near.unwrap(), LegKind::TcpReverse);
    ends.agent.attach(far.unwrap(), LegKind::TcpReverse);
}

#[tokio::test]
async fn what_has_come_is_gathered_for_one_write_and_the_end_comes_after_it() {
    let mut ends = ends();
    let _leg = ends.join();
    let (mut ours, theirs) = ends.channel().await;
    let sent = pattern(100_000, 3);
    ours.write(Bytes::from(sent.clone())).await.unwrap();
    ours.finish();
    let (_reader, mut writer) = ours.split();
    writer.delivered().await.unwrap();
    let (reader, _writer) = theirs.split();
    let mut rope = Rope::default();
    assert!(reader.gather(&mut rope, 65_536).await.unwrap());
    assert!((65_536..65_536 + PAYLOAD_MAX).contains(&rope.remaining()), "{}", rope.remaining());
    assert!(reader.gather(&mut rope, 1_000_000).await.unwrap());
    assert_eq!(rope.copy_to_bytes(rope.remaining()), sent);
    assert!(!reader.gather(&mut rope, 1).await.unwrap());
}

#[test]
fn a_joined_rope_makes_one_part_of_a_batch() {
    let frame = |byte: u8| Frame::Data {
        channel: ChannelId::new(1).unwrap(),
        offset: 0,
        bytes: Bytes::from(vec![byte; PAYLOAD_MAX]),
        mark: Mark::Original,
    };
    let (mut joined, mut plain) = (Rope::joined(), Rope::default());
    for byte in 0..4 {
        joined.push(&frame(byte));
        plain.push(&frame(byte));
    }
    joined.seal();
    plain.seal();
    assert_eq!((joined.parts().len(), plain.parts().len()), (1, 8));
    assert_eq!(joined.remaining(), plain.remaining());
    let (ours, theirs) = (joined.remaining(), plain.remaining());
    assert_eq!(joined.copy_to_bytes(ours), plain.copy_to_bytes(theirs));
}

#[tokio::test]
async fn echo_over_tls_shows_rtt_and_transport() {
    let mut ends = ends();
    let keys = (SessionKey::generate().unwrap(), SessionKey::generate().unwrap());
    tls_leg(&ends, &keys).await;
    let (mut ours, mut theirs) = ends.channel().await;
    for _ in 0..50 {
        ours.write(Bytes::from_static(b"ping")).await.unwrap();
        let ping = theirs.read().await.unwrap().unwrap();
        theirs.write(ping).await.unwrap();
        assert_eq!(ours.read().await.unwrap().unwrap(), "ping");
    }
    let stats = ends.client.stats();
    assert_eq!((stats.state, stats.leg), (LinkState::Connected, Some(LegKind::TcpReverse)));
    assert_eq!((stats.bytes_sent, stats.bytes_received, stats.channels), (201, 200, 1));
    assert!(stats.rtt.is_some());
}

#[tokio::test]
async fn half_close_delivers_the_tail_in_both_orders() {
    let mut ends = ends();
    let _leg = ends.join();
    for client_first in [true, false] {
        let (mut ours, mut theirs) = ends.channel().await;
        let (first, second) =
            if client_first { (&mut ours, &mut theirs) } else { (&mut theirs, &mut ours) };
        first.write(Bytes::from_static(b"request")).await.unwrap();
        first.finish();
        assert_eq!(read_all(second).await, b"request");
        second.write(Bytes::from_static(b"answer")).await.unwrap();
        second.finish();
        assert_eq!(read_all(first).await, b"answer");
        assert_eq!(first.write(Bytes::from_static(b"more")).await, Err(ChannelError::Finished));
    }
}

#[tokio::test]
async fn a_reset_reaches_the_other_end_from_either_side() {
    let mut ends = ends();
    let _leg = ends.join();
    let (mut ours, mut theirs) = ends.channel().await;
    ours.reset(5);
    assert_eq!(theirs.read().await, Err(ChannelError::Reset(5)));
    let (mut ours, mut theirs) = ends.channel().await;
    theirs.reset(6);
    assert_eq!(ours.read().await, Err(ChannelError::Reset(6)));
    assert_eq!(ours.write(Bytes::from_static(b"x")).await, Err(ChannelError::Reset(6)));
}

#[tokio::test]
async fn a_channel_dropped_unfinished_is_reset_and_a_finished_one_is_delivered() {
    let mut ends = ends();
    let _leg = ends.join();
    let (ours, mut theirs) = ends.channel().await;
    drop(ours);
    assert_eq!(theirs.read().await, Err(ChannelError::Reset(RESET_DROPPED)));
    let (mut ours, mut theirs) = ends.channel().await;
    ours.write(Bytes::from(pattern(100_000, 1))).await.unwrap();
    ours.finish();
    drop(ours);
    assert_eq!(read_all(&mut theirs).await, pattern(100_000, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_survives_its_legs_being_cut_again_and_again() {
    const LEN: usize = 6 * 1024 * 1024;
    let mut ends = ends();
    let keys = (SessionKey::generate().unwrap(), SessionKey::generate().unwrap());
    let mut leg = ends.join();
    let (ours, theirs) = ends.channel().await;
    let both = [(ours, 1), (theirs, 2)].map(|(channel, salt)| {
        let (mut reader, mut writer) = channel.split();
        let write = tokio::spawn(async move {
            for piece in pattern(LEN, salt).chunks(10_000) {
                writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            writer.finish();
        });
        let read = tokio::spawn(async move {
            let mut all = Vec::new();
            while let Some(bytes) = reader.read().await.unwrap() {
                all.extend_from_slice(&bytes);
            }
            all
        });
        (write, read)
    });
    // Legs die after ever more bytes, so that cuts fall into the transfer at any speed.
    for cut in 1..=8 {
        let mark = cut * LEN as u64 / 10;
        while ends.client.stats().bytes_received < mark {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        leg.abort();
        if cut % 2 == 0 {
            tls_leg(&ends, &keys).await;
        }
        leg = ends.join();
    }
    for ((write, read), salt) in both.into_iter().zip([2, 1]) {
        write.await.unwrap();
        assert!(read.await.unwrap() == pattern(LEN, salt), "bytes differ");
    }
    assert!(ends.client.stats().legs_lost >= 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_channels_share_a_session() {
    let mut ends = ends();
    let _leg = ends.join();
    let client = ends.client.clone();
    let agent = tokio::spawn(async move {
        let mut echoes = tokio::task::JoinSet::new();
        for _ in 0..400 {
            let mut channel = ends.incoming().await;
            echoes.spawn(async move {
                let all = read_all(&mut channel).await;
                channel.write(Bytes::from(all)).await.unwrap();
                channel.finish();
            });
        }
        echoes.join_all().await;
        ends
    });
    let mut asks = tokio::task::JoinSet::new();
    for salt in 0..400 {
        let mut channel = client.open().unwrap();
        asks.spawn(async move {
            channel.write(Bytes::from(pattern(5_000, salt))).await.unwrap();
            channel.finish();
            assert!(read_all(&mut channel).await == pattern(5_000, salt));
        });
    }
    asks.join_all().await;
    let ends = agent.await.unwrap();
    while client.stats().channels + ends.agent.stats().channels > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn close_reaches_the_peer_and_ends_everything() {
    let mut ends = ends();
    let _leg = ends.join();
    let (mut ours, mut theirs) = ends.channel().await;
    ends.client.close(42);
    assert_eq!(closed(&mut ends.client_events).await, CloseReason::ByUs(42));
    assert_eq!(closed(&mut ends.agent_events).await, CloseReason::ByPeer(42));
    assert_eq!(ours.read().await, Err(ChannelError::Closed));
    assert_eq!(theirs.read().await, Err(ChannelError::Closed));
    assert_eq!(ends.agent.open().unwrap_err(), crate::OpenError::Closed);
    assert_eq!(ends.agent.stats().state, LinkState::Closed);
}

#[tokio::test]
async fn dropping_the_last_handle_closes_the_session() {
    let mut ends = ends();
    let _leg = ends.join();
    let clone = ends.client.clone();
    drop(ends.channel().await);
    drop(clone);
    let Ends { client, mut agent_events, .. } = ends;
    drop(client);
    assert_eq!(closed(&mut agent_events).await, CloseReason::ByPeer(0));
}

#[tokio::test(start_paused = true)]
async fn a_session_is_lost_when_no_leg_comes_within_the_window() {
    let mut ends = ends();
    let leg = ends.join();
    let (mut ours, _theirs) = ends.channel().await;
    let before = tokio::time::Instant::now();
    leg.abort();
    assert_eq!(ours.read().await, Err(ChannelError::Lost));
    assert_eq!(before.elapsed().as_secs(), 60);
    assert_eq!(closed(&mut ends.client_events).await, CloseReason::Lost);
}

#[tokio::test]
async fn garbage_on_a_leg_closes_the_session() {
    let (_handle, mut events) = SessionHandle::start(Role::Agent, "s", SessionConfig::default());
    let (leg, mut far) = tokio::io::duplex(1024);
    _handle.attach(leg, LegKind::TcpReverse);
    far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(matches!(closed(&mut events).await, CloseReason::Protocol(_)));
}

/// A socket at either end of a carried channel, and both outcomes.
async fn carried(ends: &mut Ends) -> (TcpStream, TcpStream, [JoinHandle<CarryOutcome>; 2]) {
    let (near, near_inner) = socket_pair().await;
    let (far_inner, far) = socket_pair().await;
    let ours = ends.client.open().unwrap();
    let client = tokio::spawn(carry(ours, near_inner));
    let theirs = ends.incoming().await;
    (near, far, [client, tokio::spawn(carry(theirs, far_inner))])
}

#[tokio::test]
async fn carry_passes_half_closes_and_counts_bytes() {
    let mut ends = ends();
    let _leg = ends.join();
    let (mut near, mut far, outcomes) = carried(&mut ends).await;
    near.write_all(b"request").await.unwrap();
    near.shutdown().await.unwrap();
    let mut request = Vec::new();
    far.read_to_end(&mut request).await.unwrap();
    far.write_all(b"the answer").await.unwrap();
    far.shutdown().await.unwrap();
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    assert_eq!((&request[..], &answer[..]), (&b"request"[..], &b"the answer"[..]));
    let [client, agent] = outcomes;
    let (client, agent) = (client.await.unwrap(), agent.await.unwrap());
    assert!(matches!(client.end, CarryEnd::Finished) && matches!(agent.end, CarryEnd::Finished));
    assert_eq!(
        (client.bytes_in, client.bytes_out, agent.bytes_in, agent.bytes_out),
        (7, 10, 10, 7)
    );
}

#[tokio::test]
async fn a_reset_socket_resets_the_socket_at_the_other_end() {
    let mut ends = ends();
    let _leg = ends.join();
    let (near, mut far, outcomes) = carried(&mut ends).await;
    near.set_zero_linger().unwrap();
    drop(near);
    let error = far.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let [client, agent] = outcomes;
    assert!(matches!(client.await.unwrap().end, CarryEnd::Socket(_)));
    let reset = agent.await.unwrap().end;
    assert!(matches!(reset, CarryEnd::Channel(ChannelError::Reset(RESET_SOCKET))), "{reset:?}");
}

#[tokio::test]
async fn a_session_closed_in_mid_stream_is_no_clean_end_of_file() {
    let mut ends = ends();
    let _leg = ends.join();
    let (mut near, mut far, _outcomes) = carried(&mut ends).await;
    near.write_all(b"half").await.unwrap();
    far.read_exact(&mut [0; 4]).await.unwrap();
    ends.client.close(1);
    let error = far.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn carry_stdio_ends_with_both_directions() {
    let mut ends = ends();
    let _leg = ends.join();
    let ours = ends.client.open().unwrap();
    let (mut output, output_far) = tokio::io::duplex(1024);
    let carrying = tokio::spawn(carry_stdio(ours, &b"input"[..], output_far));
    let mut theirs = ends.incoming().await;
    assert_eq!(read_all(&mut theirs).await, b"input");
    theirs.write(Bytes::from_static(b"output")).await.unwrap();
    theirs.finish();
    let mut all = Vec::new();
    output.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"output");
    assert!(matches!(carrying.await.unwrap().end, CarryEnd::Finished));
}

#[tokio::test(start_paused = true)]
async fn carry_stdio_is_finished_only_once_the_peer_has_all_of_the_input() {
    let mut ends = ends();
    let leg = ends.join();
    let ours = ends.client.open().unwrap();
    let (input, mut input_far) = tokio::io::duplex(1024);
    let carrying = tokio::spawn(carry_stdio(ours, input, tokio::io::sink()));
    let mut theirs = ends.incoming().await;
    theirs.finish();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Without a leg the input is taken but goes nowhere.
    leg.abort();
    input_far.write_all(b"the last words").await.unwrap();
    drop(input_far);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!carrying.is_finished());
    let _leg = ends.join();
    assert!(matches!(carrying.await.unwrap().end, CarryEnd::Finished));
    ends.client.close(0);
    assert_eq!(closed(&mut ends.agent_events).await, CloseReason::ByPeer(0));
    assert_eq!(read_all(&mut theirs).await, b"the last words");
}

#[tokio::test(start_paused = true)]
async fn input_that_never_got_through_is_no_success() {
    let mut ends = ends();
    let leg = ends.join();
    let ours = ends.client.open().unwrap();
    let (input, mut input_far) = tokio::io::duplex(1024);
    let carrying = tokio::spawn(carry_stdio(ours, input, tokio::io::sink()));
    let mut theirs = ends.incoming().await;
    theirs.finish();
    tokio::time::sleep(Duration::from_secs(1)).await;
    leg.abort();
    input_far.write_all(b"the last words").await.unwrap();
    drop(input_far);
    let end = carrying.await.unwrap().end;
    assert!(matches!(end, CarryEnd::Channel(ChannelError::Lost)), "{end:?}");
}

/// The peer's whole tail is with an agent whose target takes nothing yet; then the client closes with `code`, and the
/// target reads after `pause`. What it got.
async fn tail_after_close(code: u16, pause: Duration) -> usize {
    let mut ends = ends();
    let _leg = ends.join();
    let mut ours = ends.client.open().unwrap();
    let theirs = ends.incoming().await;
    let (output, mut target) = tokio::io::duplex(1024);
    let (held, _never) = tokio::io::duplex(1);
    let carrying = tokio::spawn(carry_stdio(theirs, held, output));
    ours.write(Bytes::from(pattern(50_000, 3))).await.unwrap();
    let (_reader, mut writer) = ours.split();
    writer.finish();
    writer.delivered().await.unwrap();
    ends.client.close(code);
    tokio::time::sleep(pause).await;
    let mut all = Vec::new();
    target.read_to_end(&mut all).await.unwrap();
    assert!(pattern(50_000, 3).starts_with(&all));
    drop(carrying.await.unwrap());
    all.len()
}

#[tokio::test(start_paused = true)]
async fn a_slow_target_gets_the_whole_tail_of_a_session_that_was_closed_as_done() {
    assert_eq!(tail_after_close(0, Duration::from_secs(50)).await, 50_000);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_takes_nothing_or_whose_session_was_ended_is_not_waited_for() {
    assert!(tail_after_close(0, Duration::from_secs(70)).await < 50_000);
    assert!(tail_after_close(1, Duration::from_secs(6)).await < 50_000);
}

/// A UDP service's socket at either end of a flow.
async fn udp_pair() -> (UdpSocket, UdpSocket) {
    let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    near.connect(far.local_addr().unwrap()).await.unwrap();
    far.connect(near.local_addr().unwrap()).await.unwrap();
    (near, far)
}

impl Ends {
    async fn incoming_datagrams(&mut self) -> DatagramFlow {
        loop {
            match self.agent_events.recv().await.expect("the agent's session ended") {
                SessionEvent::IncomingDatagrams(flow) => return flow,
                SessionEvent::Closed(reason) => panic!("closed: {reason:?}"),
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn a_udp_service_is_carried_both_ways_and_ends_with_its_flow() {
    let mut ends = ends();
    let _leg = ends.join();
    let ours = ends.client.open_datagrams().unwrap();
    let theirs = ends.incoming_datagrams().await;
    assert_eq!(ours.id(), theirs.id());
    let (socket, service) = udp_pair().await;
    let carrying = tokio::spawn(carry_datagrams(theirs, socket, Duration::from_secs(60)));
    ours.send(Bytes::from_static(b"ping")).unwrap();
    let mut buffer = [0; 100];
    assert_eq!(service.recv(&mut buffer).await.unwrap(), 4);
    service.send(b"pong!").await.unwrap();
    assert_eq!(ours.recv().await.unwrap(), "pong!");
    drop(ours);
    let outcome = carrying.await.unwrap();
    assert!(matches!(outcome.end, FlowEnd::Closed(ChannelError::Reset(RESET_DROPPED))));
    assert_eq!((outcome.bytes_in, outcome.bytes_out), (5, 4));
}

#[tokio::test]
async fn an_idle_flow_ends_for_both() {
    let mut ends = ends();
    let _leg = ends.join();
    let ours = ends.client.open_datagrams().unwrap();
    let theirs = ends.incoming_datagrams().await;
    let (socket, _service) = udp_pair().await;
    let outcome = carry_datagrams(theirs, socket, Duration::from_millis(50)).await;
    assert!(matches!(outcome.end, FlowEnd::Idle));
    assert_eq!(ours.recv().await, None);
}
