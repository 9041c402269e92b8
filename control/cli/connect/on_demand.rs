//! `connect --on-demand`: a session while there are connections, and the next held ready.
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use switchback_control::client::{Client, ClientSession, local};
use switchback_control::invite::Invite;
use switchback_control::wire::ResourceKind;
use switchback_control::{Code, Fault};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::notices::Attendant;
use super::{CLOSE_PATIENCE, ConnectArgs, bind, options, tell, while_told};
use crate::args::Global;
use crate::output;
use crate::stop::Stop;

/// A resource counts as used so often while connections to it may come: a client holds a session ready for ten minutes
/// after the last use.
const USED_EVERY: Duration = Duration::from_secs(60);

/// A session whenever there are connections, until the user ends the command.
pub(super) async fn run(
    args: &ConnectArgs,
    invite: Invite,
    (address, idle): (SocketAddr, Duration),
    stop: &mut Stop,
    global: &Global,
) -> Result<(), Fault> {
    let listener = bind(address).await?;
    let client = tokio::select! {
        client = Client::connect_with(invite, options(args, 1)) => client?,
        () = stop.wait() => return Ok(()),
    };
    let _attending = Attendant::start(client.clone(), args.allow_shadowing, false, global);
    announce_waiting(&args.name, &listener, global)?;
    let demand = OnDemand {
        client: &client,
        listener,
        resource: &args.name,
        idle,
        global,
        stopped: CancellationToken::new(),
        farewells: TaskTracker::new(),
    };
    let serving = demand.serve();
    tokio::pin!(serving);
    let outcome = tokio::select! {
        outcome = &mut serving => outcome,
        () = stop.wait() => {
            demand.stopped.cancel();
            serving.await
        }
        () = hold_ready(&client, &args.name) => Ok(()),
    };
    demand.farewells.close();
    demand.farewells.wait().await;
    outcome
}

/// Has a session held ready for as long as this runs, which ends never.
async fn hold_ready(client: &Client, resource: &str) {
    let mut again = interval(USED_EVERY);
    loop {
        again.tick().await;
        client.prepare(resource);
    }
}

/// What `--on-demand` works with.
struct OnDemand<'a> {
    client: &'a Client,
    listener: TcpListener,
    resource: &'a str,
    idle: Duration,
    global: &'a Global,
    /// The user has ended the command.
    stopped: CancellationToken,
    /// The other end of a session that is over here may still have to hear of it.
    farewells: TaskTracker,
}

impl OnDemand<'_> {
    async fn serve(&self) -> Result<(), Fault> {
        while let Some(first) =
            self.stopped.run_until_cancelled(local::accept(&self.listener)).await
        {
            match self.session_for(first).await {
                Err(fault) if another_may_do(fault.code) => {
                    tracing::warn!(%fault, "no session now; the next local connection begins another");
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// One session, from its first connection until it is used no more or lost, or the user ends the command.
    async fn session_for(&self, first: TcpStream) -> Result<(), Fault> {
        let session = match self.stopped.run_until_cancelled(self.open()).await {
            Some(Ok(session)) => session,
            other => {
                local::turn_away(&first);
                return other.map_or(Ok(()), |opened| opened.map(drop));
            }
        };
        let local = self.listener.local_addr().ok();
        let tell = tell(&session, session.moves(), self.resource, local, self.global);
        let used = session.forward_while_used(first, &self.listener, self.idle);
        let outcome = self.stopped.run_until_cancelled(while_told(used, tell)).await;
        self.farewells.spawn(async move { timeout(CLOSE_PATIENCE, session.close()).await });
        outcome.unwrap_or(Ok(()))
    }

    async fn open(&self) -> Result<ClientSession, Fault> {
        let session = self.client.open(self.resource).await?;
        if session.kind() != ResourceKind::Tcp {
            let _ = timeout(CLOSE_PATIENCE, session.close()).await;
            let advice = format!("{} is a UDP service: use --listen alone", self.resource);
            return Err(Code::UsageInvalid.because(advice));
        }
        Ok(session)
    }
}

/// Whether the next connection may fare better. Sessions to an agent that came back with a new key cannot be
/// resumed, but others can begin.
fn another_may_do(code: Code) -> bool {
    code.is_temporary() || code == Code::GrantInvalid
}

/// Nobody uses a session yet.
#[derive(Debug, Serialize)]
struct Waiting<'a> {
    resource: &'a str,
    listen: Option<SocketAddr>,
    session: Option<String>,
}

fn announce_waiting(resource: &str, listener: &TcpListener, global: &Global) -> Result<(), Fault> {
    let listen = listener.local_addr().ok();
    if global.json {
        return output::json(&Waiting { resource, listen, session: None });
    }
    if let Some(listen) = listen.filter(|_| global.quiet == 0) {
        output::note(&format!(
            "listening on {listen}, forwarding to {resource}\n  a session begins with the first connection"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_on_demand_outlives_lost_sessions_and_ends_with_what_ends_all() {
        for code in [Code::SessionLost, Code::SessionClosed, Code::GrantInvalid, Code::AgentOffline]
        {
            assert!(another_may_do(code), "{code}");
        }
        for code in [Code::SessionKilled, Code::TokenRevoked, Code::ResourceUnknown] {
            assert!(!another_may_do(code), "{code}");
        }
    }
}
