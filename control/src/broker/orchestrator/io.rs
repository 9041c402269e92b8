//! What the orchestrator is told, and what it wants done.
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use switchback_engine::{LegSide, PairId, Tuning};

use super::gateways::{GatewayId, GatewayUp};
use crate::broker::policy::Rights;
use crate::broker::seal::Grant;
use crate::broker::shadow::Audit;
use crate::code::{Code, Fault};
use crate::wire::{
    Candidate, ClientAddress, GatewayPlace, GatewayRtt, LegWish, LossCounts, PathMove, PathReport,
    PublicKey, Resource, ResourceKind, SessionId, SessionNotice, SessionPurpose, SessionReport,
    TargetHealth, TransportPolicy,
};

/// One link, of an agent or a client, while it lasts. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LinkId(pub(crate) u64);

/// An agent whose assertion and message were found good.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) name: String,
    pub(crate) key: PublicKey,
    /// Its enrolment.
    pub(crate) token: String,
    /// What it offers, found to be as it must be.
    pub(crate) resources: Vec<Resource>,
    /// Sessions it still holds whose grants were found good.
    pub(crate) sessions: Vec<Grant>,
    /// It is to get no new sessions.
    pub(crate) draining: bool,
}

/// A report, with the session's grant if it came along and was found good.
#[derive(Clone, Debug)]
pub(crate) struct Reported {
    pub(crate) report: SessionReport,
    pub(crate) grant: Option<Grant>,
}

/// A client's wish for a new session, found to be granted.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) request: u64,
    pub(crate) resource: String,
    pub(crate) client_key: PublicKey,
    /// To be held ready rather than used now.
    pub(crate) ready: bool,
    /// Unguessable and unused, like `pair`.
    pub(crate) session: SessionId,
    pub(crate) pair: PairId,
    pub(crate) created_ms: u64,
    /// Where the client is by UDP, found honest; `None` if it does without.
    pub(crate) udp: Option<Vec<Candidate>>,
    pub(crate) purpose: SessionPurpose,
    /// The user of the session to be watched is to be asked first.
    pub(crate) consent: bool,
    /// Where the client's link comes from.
    pub(crate) source: Option<IpAddr>,
    /// What policies let the session do.
    pub(crate) rights: Rights,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    ClientUp {
        link: LinkId,
        user: String,
        token: String,
        address: Option<ClientAddress>,
    },
    ClientDown {
        link: LinkId,
    },
    AgentUp {
        link: LinkId,
        registration: Registration,
    },
    AgentDown {
        link: LinkId,
    },
    Open {
        link: LinkId,
        wish: Wish,
    },
    /// A client asks for another leg; `grant` was found good, `pair` is unused.
    Leg {
        link: LinkId,
        request: u64,
        grant: Grant,
        pair: PairId,
        /// As in [`Wish`].
        udp: Option<Vec<Candidate>>,
        wish: LegWish,
    },
    /// A gateway has a link from now on.
    GatewayUp {
        up: GatewayUp,
    },
    GatewayDown {
        gateway: GatewayId,
    },
    /// What it holds: pair, session if it knows, and whether the legs have met; `last`: that was all.
    GatewayHolds {
        gateway: GatewayId,
        held: Vec<(PairId, Option<SessionId>, bool)>,
        last: bool,
    },
    /// Its sessions shall move, or may come again.
    GatewayDrains {
        gateway: GatewayId,
        drain: bool,
    },
    GatewayLoad {
        gateway: GatewayId,
        pairs: usize,
    },
    /// From either end.
    Rtts {
        link: LinkId,
        rtts: Vec<GatewayRtt>,
    },
    /// Where an agent is by UDP now, found honest.
    Network {
        link: LinkId,
        candidates: Vec<Candidate>,
    },
    /// More of the same from either end, for one session.
    Candidates {
        link: LinkId,
        session: SessionId,
        candidates: Vec<Candidate>,
    },
    /// Some of what an end offered are no addresses that a peer may be sent to.
    CandidatesRefused {
        link: LinkId,
    },
    /// Someone wants to know how a session goes.
    Explain {
        session: SessionId,
    },
    /// A client's session went over to another transport; `direct`: to a path that does without the gateway.
    Moved {
        link: LinkId,
        session: SessionId,
        moved: Box<PathMove>,
        direct: bool,
    },
    /// An end's answer to that, within bounds.
    Paths {
        link: LinkId,
        session: SessionId,
        paths: Box<PathReport>,
    },
    /// How an agent finds its targets and its machine, within bounds.
    Health {
        link: LinkId,
        targets: Vec<TargetHealth>,
        load_percent: u32,
    },
    /// A ping of a link was answered after this.
    LinkRtt {
        link: LinkId,
        rtt: Duration,
    },
    /// An agent is to get no new sessions, or is to get some again.
    Drain {
        agent: String,
        draining: bool,
    },
    /// An agent asks for as many warm legs as there are unused `pairs`.
    Warm {
        link: LinkId,
        pairs: Vec<PairId>,
    },
    /// From either end.
    Reports {
        link: LinkId,
        reports: Vec<Reported>,
    },
    /// A user's answer to `consent_asked`.
    Consent {
        link: LinkId,
        id: u64,
        yes: bool,
    },
    /// Pause a session, or let it go on.
    Hold {
        session: SessionId,
        by: String,
        held: bool,
    },
    /// Tell the user of a session something.
    Message {
        session: SessionId,
        from: String,
        text: String,
    },
    /// A ready session is used: from the client as it takes it, from the agent at the first channel.
    Begun {
        link: LinkId,
        session: SessionId,
    },
    /// From either end.
    Ended {
        link: LinkId,
        session: SessionId,
        code: Code,
    },
    Kill {
        session: SessionId,
        code: Code,
    },
    /// An end showed a grant that does not hold any more.
    Condemned {
        link: LinkId,
        grant: Box<Grant>,
        code: Code,
    },
    /// A live session was judged anew: what it may do from now on, or why it ends.
    Judged {
        session: SessionId,
        verdict: Result<Rights, Code>,
    },
    TokenRevoked {
        token: String,
    },
    /// A sign-in was not renewed in time.
    TokenExpired {
        token: String,
    },
    /// Someone may have a right less, and nobody knows yet which.
    RightsChanged,
    /// What is known of a sign-in has changed: its links shall be made anew, which ends nothing.
    SigninChanged {
        token: String,
    },
    /// `user` may now use these resources only; `*` is all.
    GrantsChanged {
        user: String,
        resources: Vec<String>,
    },
    LegWaiting {
        pair: PairId,
        side: LegSide,
    },
    LegGone {
        pair: PairId,
        side: LegSide,
    },
    PairStarted {
        pair: PairId,
    },
    PairEnded {
        pair: PairId,
    },
    /// About once a second.
    Tick,
}

impl Input {
    /// Whether afterwards another resource may be online, or someone's feed be another one.
    pub(crate) const fn may_change_feeds(&self) -> bool {
        matches!(
            self,
            Self::AgentUp { .. }
                | Self::AgentDown { .. }
                | Self::GrantsChanged { .. }
                | Self::TokenRevoked { .. }
                | Self::TokenExpired { .. }
                | Self::SigninChanged { .. }
                | Self::RightsChanged
        )
    }
}

/// How the agent's leg comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Dial,
    Warm,
}

/// What an end is told about a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The other end can also be reached here.
    Candidates(Vec<Candidate>),
    /// Here is the right to use the relay, renewed.
    Relay {
        /// Whose quota counts there.
        user: String,
    },
    /// This may carry the session from now on, at this rate.
    Policy { transport: TransportPolicy, rate_bits: Option<u64> },
    /// Say what you see.
    Explain,
    /// Hold all bytes back by this one's word, or let them go.
    Hold(Option<String>),
}

/// Something to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Registered {
        link: LinkId,
    },
    WarmTickets {
        link: LinkId,
        pairs: Vec<PairId>,
    },
    Offer {
        link: LinkId,
        grant: Box<Grant>,
        pair: PairId,
        how: How,
        /// For a resource whose service is told.
        client_address: Option<ClientAddress>,
        transport: TransportPolicy,
        /// The client's; `None`: no UDP.
        udp: Option<Vec<Candidate>>,
        /// The agent is to say when it begins.
        ready: bool,
        /// The leg replaces those that work.
        instead: bool,
    },
    /// The client's leg of this pair, whose ticket comes next, brings this for both legs.
    Tune {
        pair: PairId,
        tuning: Arc<Tuning>,
    },
    Granted {
        link: LinkId,
        request: u64,
        grant: Box<Grant>,
        pair: PairId,
        transport: TransportPolicy,
        /// The agent's; `None`: no UDP.
        udp: Option<Vec<Candidate>>,
        kind: ResourceKind,
    },
    ClientLeg {
        link: LinkId,
        request: u64,
        grant: Box<Grant>,
        pair: PairId,
        /// The agent's; `None`: no UDP.
        udp: Option<Vec<Candidate>>,
    },
    /// Tell an end of a session something.
    Tell {
        link: LinkId,
        end: LegSide,
        session: SessionId,
        notice: Notice,
    },
    /// Count a move; `first_direct`: the session had no direct path before; `told`: it is an event too.
    Moved {
        grant: Box<Grant>,
        moved: Box<PathMove>,
        first_direct: bool,
        told: bool,
    },
    /// Count what an end has counted about loss.
    Lossy {
        by_client: bool,
        counted: LossCounts,
    },
    /// Something was let drop, for this reason: count it.
    Ignored {
        code: Code,
    },
    RefuseClient {
        link: LinkId,
        request: u64,
        fault: Fault,
    },
    RefuseAgent {
        link: LinkId,
        fault: Fault,
    },
    BegunAtAgent {
        link: LinkId,
        session: SessionId,
    },
    EndAtAgent {
        link: LinkId,
        session: SessionId,
        code: Code,
    },
    EndAtClient {
        link: LinkId,
        session: SessionId,
        code: Code,
    },
    /// Close the link once what was sent before has left.
    Close {
        link: LinkId,
    },
    /// Cut the pair, or the leg that waits for it, if there is any.
    EndPair {
        pair: PairId,
    },
    /// The same at this gateway, for one that is not known here.
    EndPairAt {
        gateway: GatewayId,
        pair: PairId,
    },
    /// The client is to ask for a leg through another gateway.
    Relocate {
        link: LinkId,
        session: SessionId,
    },
    GatewaysAtClient {
        link: LinkId,
        gateways: Vec<GatewayPlace>,
    },
    GatewaysAtAgent {
        link: LinkId,
        gateways: Vec<GatewayPlace>,
    },
    /// Neither end may use the relay any more.
    EndRelay {
        session: SessionId,
    },
    /// Tell a client's user.
    Notify {
        link: LinkId,
        notice: SessionNotice,
    },
    /// Keep a record.
    Audit(Audit),
    /// A session begins to be used, for the log.
    Began {
        grant: Box<Grant>,
    },
    /// The registry forgot a session that had begun, for the log.
    SessionOver {
        session: SessionId,
        grant: Box<Grant>,
        code: Code,
    },
}
