//! Events made of what the orchestrator is told and what it says. Pure.
use crate::api::{EventKind, EventView, TokenKind};
use crate::broker::orchestrator::{Input, Orchestrator, Output};
use crate::broker::seal::Grant;

/// An event of this kind that says nothing more.
pub(crate) const fn about(kind: EventKind) -> EventView {
    EventView {
        id: 0,
        at_ms: 0,
        kind,
        user: None,
        session: None,
        resource: None,
        agent: None,
        transport: None,
        code: None,
        detail: None,
    }
}

/// A user keeps these grants and no other.
pub(crate) fn grants_changed(user: &str, resources: &[String]) -> EventView {
    EventView {
        user: Some(user.to_owned()),
        detail: Some(match resources.len() {
            0 => "may use nothing any more".into(),
            _ => format!("may now use {}", resources.join(", ")),
        }),
        ..about(EventKind::GrantsChanged)
    }
}

pub(crate) fn token_revoked(token: &str) -> EventView {
    EventView { detail: Some(format!("token {token}")), ..about(EventKind::TokenRevoked) }
}

/// Something happened to an enrolment.
pub(crate) fn of_enrolment(kind: EventKind, id: &str, (end, name): (TokenKind, &str)) -> EventView {
    let agent = (end == TokenKind::Agent).then(|| name.to_owned());
    let gateway = if agent.is_none() { format!("gateway {name}, ") } else { String::new() };
    EventView { agent, detail: Some(format!("{gateway}enrolment {id}")), ..about(kind) }
}

/// What an input means to others, from the state before it is taken in.
pub(super) fn of_input(before: &Orchestrator, input: &Input) -> Option<EventView> {
    Some(match input {
        Input::ClientUp { user, address, .. } => EventView {
            user: Some(user.clone()),
            detail: address.map(|address| format!("from {}", address.client.ip())),
            ..about(EventKind::ClientOnline)
        },
        Input::ClientDown { link } => EventView {
            user: Some(before.client_of(*link)?.to_owned()),
            ..about(EventKind::ClientOffline)
        },
        Input::AgentDown { link } => EventView {
            agent: Some(before.agent_of(*link)?.to_owned()),
            ..about(EventKind::AgentOffline)
        },
        Input::GatewayUp { up } => of_gateway(EventKind::GatewayOnline, &up.name),
        Input::GatewayDown { gateway } => of_gateway(EventKind::GatewayOffline, gateway),
        Input::GatewayDrains { gateway, drain: true } => of_gateway(EventKind::Draining, gateway),
        Input::GrantsChanged { user, resources } => grants_changed(user, resources),
        _ => return None,
    })
}

/// What an output means to others, from the state after it was made.
pub(super) fn of_output(after: &Orchestrator, output: &Output) -> Option<EventView> {
    Some(match output {
        Output::Registered { link } => EventView {
            agent: Some(after.agent_of(*link)?.to_owned()),
            ..about(EventKind::AgentOnline)
        },
        Output::Began { grant } => of_grant(EventKind::SessionGranted, grant),
        Output::SessionOver { grant, code, .. } => {
            EventView { code: Some(*code), ..of_grant(EventKind::SessionEnded, grant) }
        }
        Output::Moved { moved, grant, told: true, .. } => {
            let from = moved.from.as_deref().unwrap_or("nothing");
            let stall_ms = moved.stall_us / 1000;
            EventView {
                transport: Some(moved.to.clone()),
                detail: Some(format!("from {from}: {}, waited {stall_ms} ms", moved.cause)),
                ..of_grant(EventKind::SessionMoved, grant)
            }
        }
        _ => return None,
    })
}

fn of_gateway(kind: EventKind, gateway: &str) -> EventView {
    EventView { detail: Some(format!("gateway {gateway}")), ..about(kind) }
}

fn of_grant(kind: EventKind, grant: &Grant) -> EventView {
    EventView {
        user: Some(grant.user.clone()),
        session: Some(grant.session.clone()),
        resource: Some(grant.resource.clone()),
        agent: Some(grant.agent.clone()),
        ..about(kind)
    }
}
