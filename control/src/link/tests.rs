//! A link against a broker of the test's making.
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::fake_broker::FakeBroker;
use super::{Doubt, FirstWord, LinkEvent, is_final, run};
use crate::code::{Code, Fault};
use crate::invite::{Invite, InviteKind};
use crate::wire::{CLIENT_LINK, FromClient, MESSAGE_BYTES_MAX, SessionId, ToClient};

type Event = LinkEvent<FromClient, ToClient>;

struct Owner {
    events: mpsc::Receiver<Event>,
    link: JoinHandle<Result<(), Fault>>,
    doubt: Doubt,
    first: FirstWord<FromClient>,
    stop: CancellationToken,
}

impl Owner {
    fn of(invite: Invite) -> Self {
        let (sender, events) = mpsc::channel(8);
        let stop = CancellationToken::new();
        let token = stop.clone();
        let doubt = Doubt::default();
        let (asked, first) = (doubt.clone(), FirstWord::default());
        let words = first.clone();
        let link =
            tokio::spawn(
                async move { run(&invite, CLIENT_LINK, sender, asked, words, token).await },
            );
        Self { events, link, doubt, first, stop }
    }

    async fn event(&mut self) -> Event {
        timeout(Duration::from_secs(20), self.events.recv()).await.unwrap().unwrap()
    }

    async fn up(&mut self) -> mpsc::Sender<FromClient> {
        loop {
            if let LinkEvent::Up(queue) = self.event().await {
                return queue;
            }
        }
    }

    async fn down(&mut self) -> Fault {
        loop {
            if let LinkEvent::Down(fault) = self.event().await {
                return fault;
            }
        }
    }

    async fn verdict(self) -> Result<(), Fault> {
        drop(self.events);
        timeout(Duration::from_secs(20), self.link).await.unwrap().unwrap()
    }
}

fn ended(text: &str) -> FromClient {
    FromClient::Ended { session: SessionId(text.into()), code: Code::SessionClosed }
}

fn end(text: &str) -> ToClient {
    ToClient::End { session: SessionId(text.into()), code: Code::SessionKilled }
}

#[tokio::test]
async fn messages_cross_both_ways_and_unknown_ones_are_ignored() {
    let broker = FakeBroker::start().await;
    let mut owner = Owner::of(broker.invite(InviteKind::Login));
    let mut link = broker.link().await;
    let queue = owner.up().await;
    queue.send(ended("a")).await.unwrap();
    assert_eq!(link.receive::<FromClient>().await, ended("a"));
    link.send_text(r#"{"type":"from_the_future"}"#.into()).await;
    link.send(&end("b")).await;
    let LinkEvent::Message(message) = owner.event().await else { panic!("a message was sent") };
    assert_eq!(message, end("b"));
    owner.stop.cancel();
    assert_eq!(owner.verdict().await, Ok(()));
}

#[tokio::test]
async fn a_broken_link_is_made_again_and_its_queue_dies_with_it() {
    let broker = FakeBroker::start().await;
    let mut owner = Owner::of(broker.invite(InviteKind::Login));
    let link = broker.link().await;
    let first = owner.up().await;
    drop(link);
    assert_eq!(owner.down().await.code, Code::BrokerUnreachable);
    assert!(first.send(ended("lost")).await.is_err());
    let mut link = broker.link().await;
    owner.up().await.send(ended("new")).await.unwrap();
    assert_eq!(link.receive::<FromClient>().await, ended("new"));
}

#[tokio::test]
async fn a_doubted_link_that_is_silent_is_made_again_and_one_that_answers_stays() {
    let broker = FakeBroker::start().await;
    let mut owner = Owner::of(broker.invite(InviteKind::Login));
    let mut link = broker.link().await;
    let queue = owner.up().await;
    owner.doubt.raise();
    // Reading is what answers pings.
    queue.send(ended("alive")).await.unwrap();
    assert_eq!(link.receive::<FromClient>().await, ended("alive"));
    link.send(&end("answer")).await;
    assert!(matches!(owner.event().await, LinkEvent::Message(_)));
    owner.doubt.raise();
    let asked = std::time::Instant::now();
    assert_eq!(owner.down().await.code, Code::BrokerUnreachable);
    assert!(asked.elapsed() < Duration::from_secs(15), "before the next ping");
    let _link = broker.link().await;
    owner.up().await;
}

#[tokio::test]
async fn a_doubted_link_that_is_silent_gives_way_to_one_made_beside_it_at_once() {
    let broker = FakeBroker::start().await;
    let mut owner = Owner::of(broker.invite(InviteKind::Login));
    let _silent = broker.link().await;
    let _queue = owner.up().await;
    owner.doubt.raise();
    let stream = broker.accept().await.unwrap();
    let before = owner.events.try_recv().err();
    assert_eq!(before, Some(TryRecvError::Empty), "the silent one is not given up before");
    let mut link = FakeBroker::upgrade(stream).await;
    assert_eq!(owner.down().await.code, Code::BrokerUnreachable);
    owner.up().await.send(ended("new")).await.unwrap();
    assert_eq!(link.receive::<FromClient>().await, ended("new"));
}

#[tokio::test]
async fn doubts_about_a_link_that_answers_make_no_other() {
    let broker = FakeBroker::start().await;
    let mut owner = Owner::of(broker.invite(InviteKind::Login));
    let mut link = broker.link().await;
    let _queue = owner.up().await;
    for _ in 0..8 {
        owner.doubt.raise();
        link.send(&end("word")).await;
        assert!(matches!(owner.event().await, LinkEvent::Message(_)));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let another = timeout(Duration::from_millis(100), broker.accept()).await;
    assert!(another.is_err(), "no other link is made");
}

#[tokio::test]
async fn what_is_queued_when_the_owner_stops_still_leaves() {
    let broker = FakeBroker::start().await;
    let mut owner = Owner::of(broker.invite(InviteKind::Login));
    let mut link = broker.link().await;
    let queue = owner.up().await;
    for name in ["a", "b"] {
        queue.try_send(ended(name)).unwrap();
    }
    owner.stop.cancel();
    assert_eq!(link.receive::<FromClient>().await, ended("a"));
    assert_eq!(link.receive::<FromClient>().await, ended("b"));
    assert_eq!(owner.verdict().await, Ok(()));
}

#[tokio::test]
async fn a_revoked_token_ends_the_link_for_good() {
    let broker = FakeBroker::start().await;
    let owner = Owner::of(broker.invite(InviteKind::Login));
    broker.refuse(401, Code::TokenRevoked.because("revoked yesterday")).await;
    let fault = owner.link.await.unwrap().unwrap_err();
    assert_eq!(fault, Code::TokenRevoked.because("revoked yesterday"));
}

#[tokio::test]
async fn a_broker_with_another_key_ends_the_link_before_the_token_is_shown() {
    let (broker, impostor) = (FakeBroker::start().await, FakeBroker::start().await);
    let mut invite = broker.invite(InviteKind::Login);
    invite.url = format!("https://{}", impostor.address());
    let owner = Owner::of(invite);
    assert!(impostor.accept().await.is_none());
    let fault = owner.link.await.unwrap().unwrap_err();
    assert_eq!(fault.code, Code::BrokerPinMismatch);
}

#[tokio::test]
async fn a_link_that_was_good_outlives_an_interceptor() {
    let mut broker = FakeBroker::start().await;
    let mut owner = Owner::of(broker.invite(InviteKind::Login));
    let link = broker.link().await;
    owner.up().await;
    let own = broker.swap_key(None);
    drop(link);
    assert_eq!(owner.down().await.code, Code::BrokerUnreachable);
    assert!(broker.accept().await.is_none());
    assert_eq!(owner.down().await.code, Code::BrokerPinMismatch);
    broker.swap_key(Some(own));
    let _link = broker.link().await;
    owner.up().await;
}

#[tokio::test]
async fn a_refusal_that_may_pass_is_retried() {
    let broker = FakeBroker::start().await;
    let mut owner = Owner::of(broker.invite(InviteKind::Login));
    broker.refuse(429, Code::RateLimited.into()).await;
    assert_eq!(owner.down().await.code, Code::RateLimited);
    let _link = broker.link().await;
    owner.up().await;
}

#[tokio::test]
async fn a_message_over_the_limit_breaks_the_link_and_nothing_else() {
    let broker = FakeBroker::start().await;
    let mut owner = Owner::of(broker.invite(InviteKind::Login));
    let mut link = broker.link().await;
    let _queue = owner.up().await;
    link.send_text("x".repeat(MESSAGE_BYTES_MAX + 1)).await;
    let fault = owner.down().await;
    assert_eq!(fault.code, Code::MessageTooLarge, "{fault}");
    let _link = broker.link().await;
    owner.up().await;
}

#[test]
fn only_what_no_time_mends_is_final() {
    assert!(is_final(Code::TokenRevoked) && is_final(Code::BrokerPinMismatch));
    for code in [Code::BrokerUnreachable, Code::RateLimited, Code::GatewayDraining] {
        assert!(!is_final(code), "{code}");
    }
}

#[tokio::test]
async fn the_first_word_travels_with_every_request_for_a_link_until_it_is_taken() {
    let broker = FakeBroker::start().await;
    let mut owner = Owner::of(broker.invite(InviteKind::Login));
    assert!(owner.first.offer(7, Arc::new(|| ended("first"))));
    broker.refuse(503, Code::RateLimited.into()).await;
    owner.down().await;
    assert_eq!(owner.first.number(), Some(7), "what was refused was not said");
    let stream = broker.accept().await.unwrap();
    let (mut link, word) = FakeBroker::upgrade_with_word::<FromClient>(stream).await;
    assert_eq!(word, ended("first"));
    let queue = owner.up().await;
    assert!(!owner.first.withdraw(7), "it was said");
    queue.send(ended("second")).await.unwrap();
    assert_eq!(link.receive::<FromClient>().await, ended("second"), "and is not said twice");
}

#[tokio::test]
async fn a_broker_that_knows_no_first_word_leaves_it_to_its_owner() {
    let broker = FakeBroker::start().await;
    let mut owner = Owner::of(broker.invite(InviteKind::Login));
    assert!(owner.first.offer(7, Arc::new(|| ended("first"))));
    let _link = broker.link().await;
    owner.up().await;
    assert!(owner.first.withdraw(7), "it is still to be said");
}
