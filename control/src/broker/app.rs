//! What every request and every link can reach.
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::TokenKind;
use crate::broker::admission::TicketAdmission;
use crate::broker::audit::Audit;
use crate::broker::config::{Authority, ServeConfig};
use crate::broker::counters::Counters;
use crate::broker::enrolment::Enrolments;
use crate::broker::hub::Hub;
use crate::broker::limits::{ENROLMENT_LINKS_MAX, USER_LINKS_MAX};
use crate::broker::looks::Looks;
use crate::broker::policy::Judge;
use crate::broker::rate::{FAILED_SIGN_INS, Rates, USER_REQUESTS};
use crate::broker::reload::Reload;
use crate::broker::shares::Shares;
use crate::broker::signin::Signins;
use crate::broker::store::{Issued, Owner, Store};
use crate::code::{Code, Fault};
use crate::firewall::Places;
use crate::invite::{Invite, InviteKind};
use crate::secret::Secret;
use crate::wire::SessionId;

/// The broker's parts.
pub(crate) struct App {
    pub(crate) hub: Arc<Hub>,
    pub(crate) store: Store,
    pub(crate) admission: Arc<TicketAdmission>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) judge: Judge,
    pub(crate) audit: Arc<Audit>,
    pub(crate) authority: Authority,
    pub(crate) pin: String,
    /// Where its packets are relayed: another server, or ports of this gateway.
    relay: (Option<String>, Option<(u16, u16)>),
    pub(crate) user_requests: Rates<String>,
    pub(crate) failed_sign_ins: Rates<IpAddr>,
    pub(crate) signins: Signins,
    pub(crate) enrolments: Enrolments,
    /// Client links by user.
    pub(crate) user_links: Arc<Shares<String>>,
    /// Links of agents and gateways by enrolment.
    pub(crate) enrolment_links: Arc<Shares<String>>,
    pub(crate) looks: Looks,
    /// Asked by SIGHUP.
    pub(crate) reload: Reload,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) started: Instant,
}

impl App {
    pub(crate) fn new(
        hub: Arc<Hub>,
        store: Store,
        admission: Arc<TicketAdmission>,
        judge: Judge,
        authority: Authority,
        pin: String,
        config: &ServeConfig,
    ) -> Self {
        Self {
            counters: hub.counters.clone(),
            audit: hub.audit.clone(),
            hub,
            store,
            admission,
            judge,
            authority,
            pin,
            relay: config.relay_places(),
            user_requests: Rates::new(USER_REQUESTS),
            failed_sign_ins: Rates::new(FAILED_SIGN_INS),
            signins: Signins::default(),
            enrolments: Enrolments::default(),
            user_links: Shares::new(USER_LINKS_MAX),
            enrolment_links: Shares::new(ENROLMENT_LINKS_MAX),
            looks: Looks::default(),
            reload: Reload::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            started: Instant::now(),
        }
    }

    /// The owner of the token in an `Authorization` header.
    ///
    /// # Errors
    /// [`Code::TokenInvalid`], [`Code::TokenRevoked`]; [`Code::RateLimited`] in their place once a source has failed too
    /// often. A good token passes even then: who shares an address with a broken program is not locked out.
    pub(crate) async fn sign_in(
        &self,
        authorization: Option<&str>,
        kind: TokenKind,
        from: SocketAddr,
    ) -> Result<Owner, Fault> {
        let token = authorization.and_then(|header| header.strip_prefix("Bearer "));
        let owner = match token {
            None => Err(Code::TokenInvalid.because("the request carries no bearer token")),
            Some(token) => self.store.owner(token.trim()).await,
        };
        let owner = owner.and_then(|owner| match owner.kind {
            found if found == kind => Ok(owner),
            found => {
                let text = format!("this token is for {}s", found.as_str());
                Err(Code::TokenInvalid.because(text))
            }
        });
        owner.map_err(|fault| self.count_guess(fault, from))
    }

    /// A failed sign-in's fault, or [`Code::RateLimited`] once its source has failed too often.
    pub(crate) fn count_guess(&self, fault: Fault, from: SocketAddr) -> Fault {
        let is_guess = matches!(
            fault.code,
            Code::TokenInvalid
                | Code::TokenRevoked
                | Code::ProofInvalid
                | Code::IdTokenInvalid
                | Code::IdTokenExpired
        );
        let charged =
            if is_guess { self.failed_sign_ins.charge(from, "failed sign-ins") } else { Ok(()) };
        charged.err().unwrap_or(fault)
    }

    /// Where packets of a session have to get to, through the gateway of its last leg; `agent_managed`: its agent's managed
    /// listeners.
    pub(crate) fn places(&self, session: &SessionId, agent_managed: Vec<SocketAddr>) -> Places {
        let (relay, own_ports) = self.relay.clone();
        let there = self.hub.place_of(session);
        let there =
            there.and_then(|(address, ports)| Some((Authority::parse(&address, 0)?, ports)));
        let (gateway, ports) = there.unwrap_or_else(|| (self.authority.clone(), own_ports));
        // Another server relays for all gateways, and none does if this one's own does not.
        let relay_ports = ports.filter(|_| own_ports.is_some());
        let Authority { host: gateway, port: gateway_port } = gateway;
        Places { gateway, gateway_port, relay, relay_ports, agent_managed }
    }

    /// Charges a user one request.
    ///
    /// # Errors
    /// [`Code::RateLimited`].
    pub(crate) fn charge(&self, user: &str) -> Result<(), Fault> {
        if self.user_requests.take(user.to_owned(), Instant::now()) {
            Ok(())
        } else {
            Err(Code::RateLimited.into())
        }
    }

    /// The string that hands a new token to its user or agent.
    pub(crate) fn invite(&self, issued: &Issued, kind: TokenKind) -> Secret {
        let kind = match kind {
            TokenKind::User => InviteKind::Login,
            TokenKind::Agent => InviteKind::Join,
            TokenKind::Gateway => InviteKind::Gateway,
        };
        let (url, pin, token) = (self.authority.url(), self.pin.clone(), issued.token.clone());
        Invite { kind, url, pin, token }.to_text()
    }
}
