//! `connect`: a resource at a local port, or on standard input and output.
mod notices;
mod on_demand;

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use switchback_control::client::{Client, ClientOptions, ClientSession, SessionConfig};
use switchback_control::udp::PAUSED;
use switchback_control::wire::{PathMove, ResourceKind, RttView};
use switchback_control::{Code, Fault};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep, timeout};

use self::notices::Attendant;
use crate::args::Global;
use crate::output::human;
use crate::stop::Stop;
use crate::udp_args::UdpArgs;
use crate::{account, output};

/// How long the status line waits for the first round-trip time, which one PING gives.
const RTT_PATIENCE: Duration = Duration::from_secs(1);
/// How long the other end may take to hear that the session is over: a person waits for the prompt.
pub(crate) const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
const RTT_POLL: Duration = Duration::from_millis(20);
/// Reach a resource by a local port or standard input and output.
///
/// With --listen, every connection to the local port becomes a channel of one session; of a UDP service, every local
/// address that sends becomes a flow of datagrams, forgotten after two minutes of silence. One line tells each change of
/// transport: to what, its round trip, and why. With --stdio, one channel runs
/// over standard input and output, for ssh's ProxyCommand; nothing else is printed there. If the network or the
/// gateway goes away, connections pause and go on where they stopped. With --on-demand a session lasts only as long as it
/// is used, and the next is held ready, so that its first byte waits for nothing but one round trip.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback connect web --listen 127.0.0.1:8080      then: curl http://127.0.0.1:8080/
  switchback connect game --listen 127.0.0.1:9000     a UDP service
  switchback connect db --listen 127.0.0.1:0 --json   one line says which port it became
  switchback connect rdp --listen 127.0.0.1:3389 --on-demand 5m     a session while it is used
  ssh -o ProxyCommand='switchback connect ssh --stdio -q' user@ssh")]
pub(crate) struct ConnectArgs {
    /// Resource, from `switchback resources`
    name: String,
    /// Local address to listen on; port 0 takes a free one
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        conflicts_with = "stdio",
        required_unless_present = "stdio"
    )]
    listen: Option<SocketAddr>,
    /// Carry one connection over standard input and output
    #[arg(long)]
    stdio: bool,
    /// Begin a session with the first connection and end it after TIME without any, or when it is lost; the next
    /// connection begins another. As long as the command runs one is held ready, which shows nowhere and counts for
    /// nothing until it is used
    #[arg(long, value_name = "TIME", conflicts_with = "stdio", value_parser = humantime::parse_duration)]
    on_demand: Option<Duration>,
    /// How long to keep trying before a temporary refusal is reported
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = humantime::parse_duration)]
    start_timeout: Duration,
    /// How long connections wait for a way through when nothing carries the session, before they fail; at most 60s,
    /// which is how long the agent waits
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = resume_window)]
    resume_window: Duration,
    /// Let administrators watch without asking here; without it and without a terminal to ask on, who needs consent is
    /// refused
    #[arg(long)]
    allow_shadowing: bool,
    #[command(flatten)]
    udp: UdpArgs,
}

/// The agent's resume window: past it the agent's end of the session is gone, and waiting on would be in vain.
const RESUME_WINDOW_MAX: Duration = Duration::from_secs(60);

fn resume_window(text: &str) -> Result<Duration, String> {
    let window = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if window.is_zero() {
        return Err("must be longer than 0s".into());
    }
    if window > RESUME_WINDOW_MAX {
        return Err("at most 60s: the agent gives the session up after that".into());
    }
    Ok(window)
}

/// What a connected session looks like from here.
#[derive(Debug, Serialize)]
struct Status {
    resource: String,
    session: String,
    agent: String,
    listen: Option<SocketAddr>,
    transport: Option<String>,
    rtt: Option<RttView>,
}

/// Runs `connect`.
pub(crate) async fn run(args: ConnectArgs, global: &Global) -> Result<(), Fault> {
    let invite = account::invite(global)?;
    let mut stop = Stop::listen()?;
    if let (Some(idle), Some(address)) = (args.on_demand, args.listen) {
        return on_demand::run(&args, invite, (address, idle), &mut stop, global).await;
    }
    // This process opens one session.
    let client = Client::begin(invite, options(&args, 0))?;
    let stdio = args.listen.is_none();
    let _attending = Attendant::start(client.clone(), args.allow_shadowing, stdio, global);
    let opening = open(&args, &client);
    let (port, session) = tokio::select! {
        opened = opening => opened?,
        () = stop.wait() => return Ok(()),
    };
    let outcome = tokio::select! {
        outcome = carry(&session, port, &args.name, global) => outcome,
        () = stop.wait() => Ok(()),
    };
    // The other end learns of a lost farewell by itself.
    let _ = timeout(CLOSE_PATIENCE, session.close()).await;
    outcome
}

/// Where applications come in.
enum Port {
    Tcp(TcpListener),
    Udp(UdpSocket),
    Stdio,
}

impl Port {
    fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Udp(socket) => socket.local_addr().ok(),
            Self::Stdio => None,
        }
    }
}

/// Takes the local port first, for both protocols, as the resource's is not known yet: a session is not worth opening for
/// a port that is taken.
async fn open(args: &ConnectArgs, client: &Client) -> Result<(Port, ClientSession), Fault> {
    let ports = match args.listen {
        Some(address) => {
            let (tcp, udp) = (bind(address).await, bind_udp(address).await);
            if let (Err(fault), Err(_)) = (&tcp, &udp) {
                return Err(fault.clone());
            }
            Some((tcp, udp))
        }
        None => None,
    };
    let session = client.open(&args.name).await?;
    let port = match (ports, session.kind()) {
        (Some((tcp, _)), ResourceKind::Tcp) => tcp.map(Port::Tcp),
        (Some((_, udp)), ResourceKind::Udp) => udp.map(Port::Udp),
        (None, ResourceKind::Tcp) => Ok(Port::Stdio),
        (None, ResourceKind::Udp) => Err(Code::UsageInvalid
            .because(format!("{} is a UDP service: use --listen ADDRESS:PORT", args.name))),
    };
    match port {
        Ok(port) => Ok((port, session)),
        Err(fault) => {
            let _ = timeout(CLOSE_PATIENCE, session.close()).await;
            Err(fault)
        }
    }
}

fn options(args: &ConnectArgs, ready_max: usize) -> ClientOptions {
    ClientOptions {
        start_within: args.start_timeout,
        session: SessionConfig { resume_window: args.resume_window, ..args.udp.session() },
        udp: args.udp.options(),
        ready_max,
    }
}

async fn carry(
    session: &ClientSession,
    port: Port,
    resource: &str,
    global: &Global,
) -> Result<(), Fault> {
    let local = port.address();
    let tell = tell(session, session.moves(), resource, local, global);
    let work = async {
        match port {
            Port::Tcp(listener) => session.forward(listener).await,
            Port::Udp(socket) => session.forward_datagrams(socket).await,
            Port::Stdio => session.stdio().await,
        }
    };
    while_told(work, tell).await
}

/// The application's bytes neither wait for the status nor, if they are few, does the end.
async fn while_told(
    work: impl Future<Output = Result<(), Fault>>,
    tell: impl Future<Output = Result<(), Fault>>,
) -> Result<(), Fault> {
    tokio::pin!(work);
    tokio::select! {
        told = tell => told?,
        ended = &mut work => return ended,
    }
    work.await
}

/// The session's status, then its moves until it is over.
async fn tell(
    session: &ClientSession,
    mut moves: broadcast::Receiver<PathMove>,
    resource: &str,
    local: Option<SocketAddr>,
    global: &Global,
) -> Result<(), Fault> {
    let status = status(session, resource, local).await;
    announce(&status, global)?;
    let since = since(&mut moves, status.transport.as_deref());
    tell_moves(since, moves, &status, global).await
}

/// One line for each change of transport from what the status told, until the session is over.
async fn tell_moves(
    mut next: Option<PathMove>,
    mut moves: broadcast::Receiver<PathMove>,
    status: &Status,
    global: &Global,
) -> Result<(), Fault> {
    let mut known = status.transport.clone();
    loop {
        let moved = match next.take() {
            Some(moved) => moved,
            None => match moves.recv().await {
                Ok(moved) => moved,
                Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
        };
        if known.replace(moved.to.clone()).as_ref() == Some(&moved.to) {
            continue;
        }
        if !global.json {
            if global.quiet == 0 {
                output::note(&move_in_words(&moved));
            }
        } else if status.listen.is_some() {
            output::json(&moved)?;
        } else {
            output::note(&serde_json::to_string(&moved).unwrap_or_default());
        }
    }
}

/// Of the moves before now, the last, unless the status tells of it.
fn since(moves: &mut broadcast::Receiver<PathMove>, transport: Option<&str>) -> Option<PathMove> {
    let mut last = None;
    loop {
        match moves.try_recv() {
            Ok(moved) => last = Some(moved),
            Err(broadcast::error::TryRecvError::Lagged(_)) => {}
            Err(_) => return last.filter(|moved| Some(moved.to.as_str()) != transport),
        }
    }
}

fn move_in_words(moved: &PathMove) -> String {
    let PathMove { to, cause, stall_us, rtt_us, .. } = moved;
    if to == PAUSED {
        return "  paused: no path carries the session; it goes on with the first that comes back"
            .into();
    }
    let rtt = rtt_us.map_or_else(|| human::UNKNOWN.into(), |us| human::micros(us.into()));
    let stall = if *stall_us == 0 {
        String::new()
    } else {
        format!(", {} stalled", human::micros(*stall_us))
    };
    format!("  now {to}, RTT {rtt} ({}{stall})", cause.replace('_', " "))
}

/// The session's figures, once the first round-trip time is known or has let us wait too long.
async fn status(session: &ClientSession, resource: &str, listen: Option<SocketAddr>) -> Status {
    let deadline = Instant::now() + RTT_PATIENCE;
    while session.stats().rtt.is_none() && Instant::now() < deadline {
        sleep(RTT_POLL).await;
    }
    let stats = session.stats();
    Status {
        resource: resource.to_owned(),
        session: session.id().to_string(),
        agent: session.agent().to_owned(),
        listen,
        transport: stats.transport,
        rtt: stats.rtt,
    }
}

/// On standard output, where scripts look for it, unless the application's bytes go there.
fn announce(status: &Status, global: &Global) -> Result<(), Fault> {
    if !global.json {
        if global.quiet == 0 {
            output::note(&in_words(status));
        }
        return Ok(());
    }
    if status.listen.is_some() {
        return output::json(status);
    }
    let text = serde_json::to_string(status)
        .map_err(|error| Code::Internal.because(format!("cannot write JSON: {error}")))?;
    output::note(&text);
    Ok(())
}

fn in_words(status: &Status) -> String {
    let Status { resource, session, agent, .. } = status;
    let place = match status.listen {
        Some(address) => format!("listening on {address}, forwarding to {resource}"),
        None => format!("connected to {resource}"),
    };
    let transport = status.transport.as_deref().unwrap_or("no transport yet");
    format!(
        "{place} at agent {agent}\n  session {session}, {transport}, RTT {}",
        human::rtt(status.rtt)
    )
}

pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Fault> {
    TcpListener::bind(address).await.map_err(|error| refused(address, &error))
}

async fn bind_udp(address: SocketAddr) -> Result<UdpSocket, Fault> {
    UdpSocket::bind(address).await.map_err(|error| refused(address, &error))
}

fn refused(address: SocketAddr, error: &std::io::Error) -> Fault {
    let code = match error.kind() {
        std::io::ErrorKind::AddrInUse => Code::AddressInUse,
        std::io::ErrorKind::AddrNotAvailable => Code::AddressUnavailable,
        std::io::ErrorKind::PermissionDenied => Code::PortNotPermitted,
        _ => Code::Internal,
    };
    code.because(format!("cannot listen on {address}: {error}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn a_change_of_transport_is_one_line() {
        let mut moved = PathMove {
            at_ms: 5,
            from: None,
            to: "UDP (Shortpath)".into(),
            cause: "better".into(),
            stall_us: 0,
            rtt_us: Some(12_000),
        };
        assert_eq!(move_in_words(&moved), "  now UDP (Shortpath), RTT 12.0 ms (better)");
        moved.stall_us = 41_000;
        assert!(move_in_words(&moved).ends_with("(better, 41.0 ms stalled)"));
        moved.to = PAUSED.into();
        assert!(move_in_words(&moved).starts_with("  paused: "));
    }

    #[test]
    fn moves_that_the_status_tells_of_are_not_told_again() {
        let (sender, mut moves) = broadcast::channel(2);
        let moved = |to: &str| {
            let (to, cause) = (to.to_owned(), "better".to_owned());
            PathMove { at_ms: 5, from: None, to, cause, stall_us: 0, rtt_us: None }
        };
        for to in ["first", "TCP", "UDP"] {
            sender.send(moved(to)).unwrap();
        }
        let mut again = sender.subscribe();
        assert_eq!(since(&mut moves, Some("UDP")), None);
        sender.send(moved("TCP")).unwrap();
        assert_eq!(since(&mut again, Some("UDP")), Some(moved("TCP")));
        assert_eq!(since(&mut again, None), None);
    }

    #[test]
    fn it_needs_exactly_one_way_in() {
        let parse = |words: &[&str]| {
            Cli::try_parse_from(["switchback", "connect", "web"].iter().chain(words)).is_ok()
        };
        assert!(parse(&["--listen", "127.0.0.1:0"]));
        assert!(parse(&["--stdio"]));
        assert!(!parse(&[]));
        assert!(!parse(&["--stdio", "--listen", "127.0.0.1:0"]));
        assert!(!parse(&["--listen", "8080"]));
        assert!(parse(&["--listen", "127.0.0.1:0", "--on-demand", "5m"]));
        assert!(!parse(&["--stdio", "--on-demand", "5m"]), "there is one connection");
    }

    #[test]
    fn a_resume_window_is_no_longer_than_the_agents() {
        assert_eq!(resume_window("1m"), Ok(RESUME_WINDOW_MAX));
        assert_eq!(resume_window("1ms"), Ok(Duration::from_millis(1)));
        assert_eq!(SessionConfig::default().resume_window, RESUME_WINDOW_MAX);
        assert!(resume_window("61s").unwrap_err().contains("at most 60s"));
        assert!(resume_window("0s").is_err() && resume_window("soon").is_err());
    }

    #[tokio::test]
    async fn a_taken_port_is_told_as_such() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fault = bind(taken.local_addr().unwrap()).await.unwrap_err();
        assert_eq!(fault.code, Code::AddressInUse);
        let fault = bind("192.0.2.1:0".parse().unwrap()).await.unwrap_err();
        assert_eq!(fault.code, Code::AddressUnavailable);
    }

    #[test]
    fn the_status_says_where_and_how() {
        let status = Status {
            resource: "web".into(),
            session: "k3m9x2q7w4ht".into(),
            agent: "branch".into(),
            listen: Some("127.0.0.1:8080".parse().unwrap()),
            transport: Some("TCP (Reverse-Connect)".into()),
            rtt: Some(RttView { smoothed_us: 12_000, min_us: 1, p50_us: 1, p99_us: 1 }),
        };
        assert_eq!(
            in_words(&status),
            "listening on 127.0.0.1:8080, forwarding to web at agent branch\n  \
             session k3m9x2q7w4ht, TCP (Reverse-Connect), RTT 12.0 ms"
        );
    }
}
