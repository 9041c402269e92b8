//! A channel's other end: the connection to the service.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use switchback_engine::Tuning;
use switchback_shortpath::{
    CarryEnd, Channel, DatagramFlow, Tap, carry_datagrams_with, carry_with,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::agent::health::Faults;
use crate::agent::proxy_v2;
use crate::code::{Code, Fault};
use crate::dial::tcp;
use crate::reason;
use crate::udp::flows::{self, FLOW_IDLE};
use crate::wire::{ClientAddress, ProxyHeader, Resource, ResourceKind, SessionId, ShadowTarget};

/// From a channel's opening to the service's accept. Services are near their agent: a lost SYN or two (1 + 2 s) fit,
/// and a user need not wait longer to learn that nothing answers.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A service, and how it is reached.
#[derive(Debug)]
pub(super) struct Target {
    name: String,
    /// `HOST:PORT`.
    address: String,
    pub(super) tuning: Tuning,
    proxy: Option<ProxyHeader>,
    is_udp: bool,
    /// Where watchers are connected, if not to what is teed.
    pub(super) shadow: Option<ShadowTarget>,
    faults: Arc<Faults>,
}

impl Target {
    /// The target of `resource`; connections that fail are told to `faults`.
    pub(super) fn new(resource: &Resource, faults: Arc<Faults>) -> Self {
        let Resource { name, target, tuning, proxy, kind, shadow, .. } = resource.clone();
        let is_udp = kind == ResourceKind::Udp;
        Self { name, address: target, tuning, proxy, is_udp, shadow, faults }
    }

    /// The target of watchers of this one, if it has one; tuned alike, and told nothing of its clients.
    pub(super) fn of_watchers(&self) -> Option<Self> {
        let address = self.shadow.as_ref()?.target.clone();
        let tuning = self.tuning.clone();
        let (name, faults) = (self.name.clone(), Arc::default());
        Some(Self { name, address, tuning, proxy: None, is_udp: false, shadow: None, faults })
    }

    pub(super) const fn kind(&self) -> ResourceKind {
        if self.is_udp { ResourceKind::Udp } else { ResourceKind::Tcp }
    }

    /// 0 if the address has none.
    pub(super) fn port(&self) -> u16 {
        let port = self.address.rsplit_once(':').map(|(_, port)| port.parse());
        port.and_then(Result::ok).unwrap_or_default()
    }

    /// Connects, and tells the service whose connection it is if it wants to know.
    async fn dial(
        &self,
        session: &SessionId,
        client: Option<ClientAddress>,
    ) -> io::Result<TcpStream> {
        let mut socket = tcp::connect_tuned(&self.address, DIAL_TIMEOUT, &self.tuning).await?;
        if let Some(ProxyHeader::V2) = self.proxy {
            // A fresh connection's send buffer takes this whole.
            socket.write_all(&proxy_v2::header(client, session)).await?;
        }
        Ok(socket)
    }
}

/// Connects a channel of `client` to its service and carries it; a service that cannot be reached resets the channel with
/// the reason.
pub(super) async fn serve(
    mut channel: Channel,
    target: &Target,
    session: &SessionId,
    client: Option<ClientAddress>,
    tap: &impl Tap,
) {
    if target.is_udp {
        // A client that takes datagrams for a byte stream.
        return channel.reset(reason::to_wire(Code::TargetRefused));
    }
    let dialled = tokio::select! {
        dialled = target.dial(session, client) => dialled,
        // Whoever asked has gone: a service that hangs holds nothing for nobody.
        error = channel.failed() => {
            return tracing::debug!(%session, %error, "channel ended before its target was reached");
        }
    };
    let socket = match dialled {
        Ok(socket) => socket,
        Err(error) => {
            let fault = unreachable(&target.address, &error);
            tracing::warn!(%session, %fault, "target not reached");
            target.faults.found(&target.name, Some(fault.code));
            return channel.reset(reason::to_wire(fault.code));
        }
    };
    let outcome = carry_with(channel, socket, tap).await;
    let (sent, received) = (outcome.bytes_out, outcome.bytes_in);
    match outcome.end {
        CarryEnd::Finished => tracing::debug!(%session, sent, received, "channel finished"),
        CarryEnd::Channel(error) => {
            tracing::debug!(%session, sent, received, %error, "channel ended early");
        }
        CarryEnd::Socket(error) => {
            tracing::debug!(%session, sent, received, %error, "target ended early");
        }
    }
}

/// Connects a flow of datagrams to its service and carries it until it ends or falls idle.
pub(super) async fn serve_datagrams(
    flow: DatagramFlow,
    target: &Target,
    session: &SessionId,
    tap: &impl Tap,
) {
    if !target.is_udp {
        // A client that takes a byte stream for datagrams.
        return flow.reset(reason::to_wire(Code::TargetRefused));
    }
    let socket = match timeout(DIAL_TIMEOUT, flows::connect(&target.address)).await {
        Ok(Ok(socket)) => socket,
        failed => {
            let error = failed.map_or_else(
                |_| io::ErrorKind::TimedOut.into(),
                |it| it.err().unwrap_or_else(|| io::ErrorKind::Other.into()),
            );
            let fault = unreachable(&target.address, &error);
            tracing::warn!(%session, %fault, "target not reached");
            return flow.reset(reason::to_wire(fault.code));
        }
    };
    let outcome = carry_datagrams_with(flow, socket, FLOW_IDLE, tap).await;
    let (sent, received, end) = (outcome.bytes_out, outcome.bytes_in, outcome.end);
    tracing::debug!(%session, sent, received, %end, "flow ended");
}

/// Sends back what a channel brings, without asking the service, until it ends.
pub(super) async fn echo(channel: Channel) {
    let (mut reader, mut writer) = channel.split();
    while let Ok(Some(bytes)) = reader.read().await {
        if writer.write(bytes).await.is_err() {
            return;
        }
    }
    writer.finish();
}

pub(super) fn unreachable(target: &str, error: &io::Error) -> Fault {
    let code = match error.kind() {
        io::ErrorKind::ConnectionRefused => Code::TargetRefused,
        io::ErrorKind::TimedOut => Code::TargetTimeout,
        io::ErrorKind::ConnectionReset => Code::TargetReset,
        _ => Code::TargetUnreachable,
    };
    code.because(format!("{target}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream};

    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::test_channel::TestChannel;

    /// A listener whose backlog is full, so that the kernel drops further SYNs; and what fills it.
    fn hanging_target() -> (SocketAddr, Socket, Vec<Socket>) {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let fill = |_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            // In progress, for ever.
            let _ = socket.connect(&address);
            socket
        };
        let filling = (0..4).map(fill).collect();
        let address = address.as_socket().unwrap();
        let stuck = TcpStream::connect_timeout(&address, Duration::from_millis(300)).unwrap_err();
        assert_eq!(stuck.kind(), io::ErrorKind::TimedOut);
        (address, listener, filling)
    }

    #[tokio::test]
    async fn a_channel_that_is_reset_lets_go_of_a_target_that_hangs() {
        let (address, _listener, _filling) = hanging_target();
        let TestChannel { mut ours, theirs, agent, rest: _rest } =
            TestChannel::open(b"hello").await;
        let target = Target::new(&Resource::tcp("hanging", address.to_string()), Arc::default());
        let serving =
            tokio::spawn(
                async move { serve(theirs, &target, &SessionId("s".into()), None, &()).await },
            );
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!serving.is_finished());
        ours.reset(1);
        tokio::time::timeout(DIAL_TIMEOUT / 2, serving).await.unwrap().unwrap();
        while agent.stats().channels > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn each_way_not_to_reach_a_target_has_its_code() {
        for (kind, code) in [
            (io::ErrorKind::ConnectionRefused, Code::TargetRefused),
            (io::ErrorKind::TimedOut, Code::TargetTimeout),
            (io::ErrorKind::HostUnreachable, Code::TargetUnreachable),
            (io::ErrorKind::NotFound, Code::TargetUnreachable),
        ] {
            assert_eq!(unreachable("db:5432", &kind.into()).code, code);
        }
    }
}
