//! A session of two ends in one process, for tests of what is done with a channel.
use bytes::Bytes;
use switchback_shortpath::{Channel, LegKind, Role, SessionConfig, SessionEvent, SessionHandle};
use tokio::io::duplex;
use tokio::sync::mpsc;

/// Two ends of a session and of one channel.
pub(crate) struct TestChannel {
    /// The client's end, which opened it.
    pub(crate) ours: Channel,
    /// The agent's.
    pub(crate) theirs: Channel,
    /// The agent's end of the session.
    pub(crate) agent: SessionHandle,
    /// What the session lives by besides; it ends when this is dropped.
    pub(crate) rest: (SessionHandle, [mpsc::Receiver<SessionEvent>; 2]),
}

impl TestChannel {
    /// Opens it with these `first` bytes: without any it would not be there at the other end.
    pub(crate) async fn open(first: &'static [u8]) -> Self {
        let start = |role| SessionHandle::start(role, "s", SessionConfig::default());
        let ((client, quiet), (agent, mut events)) = (start(Role::Client), start(Role::Agent));
        let (near, far) = duplex(64 * 1024);
        client.attach(near, LegKind::TcpReverse);
        agent.attach(far, LegKind::TcpReverse);
        let mut ours = client.open().unwrap();
        ours.write(Bytes::from_static(first)).await.unwrap();
        let theirs = loop {
            if let SessionEvent::Incoming(channel) = events.recv().await.unwrap() {
                break channel;
            }
        };
        Self { ours, theirs, agent, rest: (client, [quiet, events]) }
    }
}
