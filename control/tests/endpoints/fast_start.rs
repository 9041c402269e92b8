//! How many round trips pass before a user's first byte is back, counted where the bytes cross.
use bytes::Bytes;
use switchback_control::api::{GrantView, NewToken, TokenKind};

use super::far_away::{Event, FarAway, sent_within};
use super::*;

/// One way from either end to the gateway: the relayed round trip is four of these.
const ONE_WAY: Duration = Duration::from_millis(50);
/// Bytes of the first write: more than all handshakes and frames around them, so that they are told by their number.
const FIRST: usize = 16_384;
/// The client's link is its first connection.
const LINK: usize = 0;

/// A world whose gateway is far from both ends, with a client that is signed in and an agent whose legs wait.
struct Far {
    world: World,
    agent: RunningAgent,
    way: FarAway,
    client: Client,
}

impl Far {
    async fn start(ready_max: usize) -> Self {
        let mut world = World::start().await;
        let agents_way = FarAway::to(world.listen, ONE_WAY).await;
        let near = world.join.url.clone();
        world.join.url = through(&agents_way);
        let mut agent = world.agent(2);
        agent.until(|state| state.registered && state.warm_legs == 2).await;
        world.join.url = near;
        // It has enrolled on one, has its link on another, and tickets and hellos of the two others are still under way.
        let waiting = agents_way.clone();
        until(|| waiting.connections() == 4).await;
        sleep(ONE_WAY * 8).await;
        let way = FarAway::to(world.listen, ONE_WAY).await;
        let mut login = world.login.clone();
        login.url = through(&way);
        let options = ClientOptions { ready_max, ..ClientOptions::default() };
        let client = Client::connect_with(login, options).await.unwrap();
        Self { world, agent, way, client }
    }

    /// Connections of the client that sent something since the mark, besides its link.
    fn legs(&self) -> Vec<usize> {
        let mut legs: Vec<usize> = self
            .way
            .events()
            .iter()
            .filter_map(|event| match event {
                Event::Sent(number, _) if *number != LINK => Some(*number),
                _ => None,
            })
            .collect();
        legs.sort_unstable();
        legs.dedup();
        legs
    }

    /// Where `event` stands in the log.
    fn place(&self, event: Event) -> usize {
        let events = self.way.events();
        events.iter().position(|noted| *noted == event).unwrap_or_else(|| panic!("{events:?}"))
    }

    async fn shown(&self) -> usize {
        ApiClient::new(self.world.login.clone()).sessions().await.unwrap().len()
    }
}

fn through(way: &FarAway) -> String {
    format!("https://{}", way.address)
}

async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap();
}

async fn echo(session: &ClientSession) {
    let mut channel = session.open_channel().unwrap();
    channel.write(Bytes::from_static(&[7; FIRST])).await.unwrap();
    let mut back = 0;
    while back < FIRST {
        let read = timeout(PATIENCE, channel.read()).await.unwrap().unwrap();
        back += read.expect("the echo goes on").len();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ready_session_has_its_first_byte_back_in_one_round_trip() {
    let far = Far::start(1).await;
    far.client.prepare("echo");
    until(|| far.client.is_ready("echo")).await;
    // HELLOs cross both ways before the mark.
    sleep(ONE_WAY * 8).await;
    assert_eq!(far.shown().await, 0, "nobody uses it");
    far.way.mark();
    let began = std::time::Instant::now();
    let session = far.client.open("echo").await.unwrap();
    echo(&session).await;
    println!(
        "ready: first byte back after {:?}, relayed round trip {:?}",
        began.elapsed(),
        ONE_WAY * 4
    );
    let events = far.way.events();
    assert!(sent_within(&events, 1, 0) >= FIRST, "it waits for nothing: {events:?}");
    // The broker heard of it, and another one is made ready.
    until(|| far.client.is_ready("echo")).await;
    assert_eq!(far.shown().await, 1);
    let second = far.client.open("echo").await.unwrap();
    assert_ne!(second.id(), session.id());
    echo(&second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_session_asks_and_dials_at_once_and_its_first_byte_rides_behind_finished() {
    let far = Far::start(0).await;
    far.way.mark();
    let began = std::time::Instant::now();
    let session = far.client.open("echo").await.unwrap();
    echo(&session).await;
    println!(
        "new: first byte back after {:?}, relayed round trip {:?}",
        began.elapsed(),
        ONE_WAY * 4
    );
    let legs = far.legs();
    let [leg] = legs[..] else { panic!("{:?}", far.way.events()) };
    assert!(far.place(Event::Dialled(leg)) < far.place(Event::Received(LINK)), "before the answer");
    let events = far.way.events();
    assert!(sent_within(&events, leg, 1) >= FIRST, "it waits for one answer: {events:?}");
    assert!(!far.client.is_ready("echo"), "this client holds none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leg_is_dialled_while_its_ticket_is_asked_for() {
    let mut far = Far::start(0).await;
    let session = far.client.open("echo").await.unwrap();
    echo(&session).await;
    far.agent.until(|state| state.warm_legs == 2).await;
    sleep(ONE_WAY * 8).await;
    let [old] = far.legs()[..] else { panic!("{:?}", far.way.events()) };
    // A leg that lived for less than two seconds is not replaced at once.
    sleep(Duration::from_secs(2)).await;
    far.way.mark();
    let began = std::time::Instant::now();
    far.way.cut(old);
    echo(&session).await;
    println!(
        "resumed: first byte back after {:?}, relayed round trip {:?}",
        began.elapsed(),
        ONE_WAY * 4
    );
    let legs: Vec<usize> = far.legs().into_iter().filter(|leg| *leg != old).collect();
    let [leg] = legs[..] else { panic!("{:?}", far.way.events()) };
    assert!(far.place(Event::Dialled(leg)) < far.place(Event::Received(LINK)), "before the answer");
    let events = far.way.events();
    // One for TLS, one for what the other end has received.
    assert!(sent_within(&events, leg, 2) >= FIRST, "it waits for two answers: {events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ready_session_goes_with_its_right_and_with_its_agent() {
    let world = World::start().await;
    let mut agent = world.agent(2);
    agent.until(|state| state.registered).await;
    let admin = ApiClient::new(world.login.clone());
    let grant = GrantView { user: "ada".into(), resource: "echo".into() };
    let wish = NewToken { grants: vec!["echo".into()], ..NewToken::new(TokenKind::User, "ada") };
    let issued = admin.issue(&wish).await.unwrap();
    let login = Invite::parse(issued.invite.reveal(), InviteKind::Login).unwrap();
    let client = Client::connect(login).await.unwrap();
    drop(client.open("echo").await.unwrap());
    until(|| client.is_ready("echo")).await;
    admin.remove_grant(&grant).await.unwrap();
    until(|| !client.is_ready("echo")).await;
    assert_eq!(client.open("echo").await.unwrap_err().code, Code::ResourceUnknown);

    admin.add_grant(&grant).await.unwrap();
    client.prepare("echo");
    until(|| client.is_ready("echo")).await;
    agent.stop.cancel();
    agent.task.await.unwrap().unwrap();
    until(|| !client.is_ready("echo")).await;
    // It comes back with an agent, and is used then.
    let mut agent = world.agent(2);
    until(|| client.is_ready("echo")).await;
    agent.until(|state| state.sessions == 0).await;
    let session = client.open("echo").await.unwrap();
    echo(&session).await;
    agent.until(|state| state.sessions == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_client_has_its_session_granted_with_its_link() {
    let far = Far::start(0).await;
    let way = FarAway::to(far.world.listen, ONE_WAY).await;
    let mut login = far.world.login.clone();
    login.url = through(&way);
    let udp = UdpOptions::off();
    let options = ClientOptions { ready_max: 0, udp, ..ClientOptions::default() };
    let began = std::time::Instant::now();
    let client = Client::begin(login, options).unwrap();
    let session = client.open("echo").await.unwrap();
    println!("new client: carried after {:?}, broker RTT {:?}", began.elapsed(), ONE_WAY * 2);
    echo(&session).await;
    let events = way.events();
    // The leg is dialled at once and waits for its ticket; the link speaks first.
    let speaks = |event: &Event| match event {
        Event::Sent(number, _) => Some(*number),
        _ => None,
    };
    let link = events.iter().find_map(speaks).unwrap();
    let leg = events.iter().position(|event| speaks(event).is_some_and(|number| number != link));
    let before = &events[..leg.unwrap()];
    // ClientHello, then all the rest: what it was granted came with the link.
    assert_eq!(sent_within(before, link, 1), sent_within(before, link, 9), "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_on_demand_lasts_as_long_as_it_is_used() {
    const IDLE: Duration = Duration::from_millis(300);
    let world = World::start().await;
    let mut agent = world.agent(2);
    agent.until(|state| state.registered).await;
    let client = Client::connect(world.login.clone()).await.unwrap();
    client.prepare("echo");
    until(|| client.is_ready("echo")).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let mut application = TcpStream::connect(port).await.unwrap();
        let (first, _) = listener.accept().await.unwrap();
        let session = client.open("echo").await.unwrap();
        let used = session.forward_while_used(first, &listener, IDLE);
        let work = async {
            // Longer than the pause that ends it: a connection that is open is use enough.
            sleep(IDLE * 3).await;
            application.write_all(b"x").await.unwrap();
            application.read_exact(&mut [0]).await.unwrap();
            let mut second = TcpStream::connect(port).await.unwrap();
            drop(application);
            sleep(IDLE * 3).await;
            second.write_all(b"y").await.unwrap();
            second.read_exact(&mut [0]).await.unwrap();
            std::time::Instant::now()
        };
        let (ended, last) = tokio::join!(timeout(PATIENCE, used), work);
        ended.unwrap().unwrap();
        assert!(last.elapsed() >= IDLE);
        session.close().await;
        ids.push(session.id().clone());
        until(|| client.is_ready("echo")).await;
    }
    assert_ne!(ids[0], ids[1]);
}
