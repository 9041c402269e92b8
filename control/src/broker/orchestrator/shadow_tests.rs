//! Watching, as the orchestrator decides it.
use std::time::Duration;

use switchback_engine::PairId;

use super::io::{Input, LinkId, Output, Registration, Wish};
use super::shadow::CONSENT_WITHIN;
use super::{Orchestrator, SessionLimits};
use crate::api::SessionState;
use crate::broker::shadow::Deed;
use crate::code::Code;
use crate::wire::{
    LegWish, PublicKey, Resource, SessionId, SessionNotice, SessionPurpose, ShadowWish,
};

const AGENT: LinkId = LinkId(1);
const USER: LinkId = LinkId(2);
const ADMIN: LinkId = LinkId(3);

/// An agent, `ada` who uses `ssh`, and an administrator who may watch.
struct World {
    core: Orchestrator,
    now: std::time::Instant,
    pairs: u8,
}

fn id(name: &str) -> SessionId {
    SessionId(name.into())
}

impl World {
    fn new() -> Self {
        let now = std::time::Instant::now();
        let core = Orchestrator::new(SessionLimits::default());
        let mut world = Self { core, now, pairs: 0 };
        let registration = Registration {
            name: "box".into(),
            key: PublicKey("agent".into()),
            token: "j".into(),
            resources: vec![Resource::tcp("ssh", "127.0.0.1:22")],
            sessions: Vec::new(),
            draining: false,
        };
        world.say(Input::AgentUp { link: AGENT, registration });
        for (link, user) in [(USER, "ada"), (ADMIN, "root")] {
            let (user, token) = (user.to_owned(), format!("t-{user}"));
            world.say(Input::ClientUp { link, user, token, address: None });
        }
        world.open(USER, "used", SessionPurpose::Use, false);
        world
    }

    fn say(&mut self, input: Input) -> Vec<Output> {
        self.core.handle(self.now, input)
    }

    fn later(&mut self, by: Duration) -> Vec<Output> {
        self.now += by;
        self.say(Input::Tick)
    }

    fn open(
        &mut self,
        link: LinkId,
        name: &str,
        purpose: SessionPurpose,
        consent: bool,
    ) -> Vec<Output> {
        self.pairs += 1;
        let pair = PairId([self.pairs; 16]);
        let wish = Wish {
            request: 7,
            resource: "ssh".into(),
            client_key: PublicKey("client".into()),
            ready: false,
            session: id(name),
            pair,
            created_ms: 1,
            udp: None,
            purpose,
            consent,
            source: None,
            rights: Default::default(),
        };
        self.say(Input::Open { link, wish })
    }

    fn watch(&mut self, name: &str, of: &str, consent: bool) -> Vec<Output> {
        let session = id(of);
        let wish = ShadowWish { session, control: true, no_prompt: !consent, target: false };
        self.open(ADMIN, name, SessionPurpose::Shadow(wish), consent)
    }

    /// Starts the pair of the session opened last.
    fn carried(&mut self) {
        let pair = PairId([self.pairs; 16]);
        self.say(Input::PairStarted { pair });
    }

    fn state(&self, name: &str) -> Option<SessionState> {
        self.core.session(&id(name), self.now).map(|session| session.state)
    }
}

fn asked(out: &[Output]) -> Option<u64> {
    out.iter().find_map(|output| match output {
        Output::Notify { link: USER, notice: SessionNotice::ConsentAsked { id, .. } } => Some(*id),
        _ => None,
    })
}

fn refused(out: &[Output]) -> Option<Code> {
    out.iter().find_map(|output| match output {
        Output::RefuseClient { link: ADMIN, request: 7, fault } => Some(fault.code),
        _ => None,
    })
}

fn granted(out: &[Output]) -> bool {
    out.iter().any(|output| matches!(output, Output::Granted { link: ADMIN, .. }))
}

fn told(out: &[Output], wanted: bool) -> bool {
    out.iter().any(|output| {
        matches!(output, Output::Notify { link: USER, notice: SessionNotice::Watched { began, .. } }
            if *began == wanted)
    })
}

fn deeds(out: &[Output]) -> Vec<Deed> {
    let deed = |output: &Output| match output {
        Output::Audit(event) => Some(event.deed),
        _ => None,
    };
    out.iter().filter_map(deed).collect()
}

#[test]
fn a_watch_is_granted_after_the_users_yes_and_shown_as_long_as_it_lasts() {
    let mut world = World::new();
    world.carried();
    let out = world.watch("watch", "used", true);
    assert!(!granted(&out) && refused(&out).is_none());
    assert_eq!(deeds(&out), [Deed::ConsentAsked]);
    let question = asked(&out).unwrap();
    // Nobody else may answer.
    assert!(world.say(Input::Consent { link: ADMIN, id: question, yes: true }).is_empty());
    let out = world.say(Input::Consent { link: USER, id: question, yes: true });
    assert!(granted(&out) && told(&out, true), "{out:?}");
    assert_eq!(deeds(&out), [Deed::ConsentGiven, Deed::WatchBegan]);
    assert_eq!(world.state("used"), Some(SessionState::Shadowed));
    let view = world.core.session(&id("used"), world.now).unwrap();
    assert_eq!(view.life.watchers[0].user, "root");
    let out =
        world.say(Input::Ended { link: ADMIN, session: id("watch"), code: Code::SessionClosed });
    assert!(told(&out, false));
    assert_eq!(deeds(&out), [Deed::WatchEnded]);
    assert_eq!(world.state("used"), Some(SessionState::Active));
}

#[test]
fn no_answer_is_a_no_after_thirty_seconds() {
    let mut world = World::new();
    let question = asked(&world.watch("watch", "used", true)).unwrap();
    let out = world.later(CONSENT_WITHIN - Duration::from_secs(1));
    assert_eq!(refused(&out), None);
    let out = world.later(Duration::from_secs(1));
    assert_eq!(refused(&out), Some(Code::ConsentUnanswered));
    let late = world.say(Input::Consent { link: USER, id: question, yes: true });
    assert!(!granted(&late), "it comes too late");
}

#[test]
fn a_no_a_user_who_left_and_a_lost_right_are_refusals() {
    let mut world = World::new();
    let question = asked(&world.watch("watch", "used", true)).unwrap();
    let out = world.say(Input::Consent { link: USER, id: question, yes: false });
    assert_eq!(refused(&out), Some(Code::ConsentRefused));
    world.watch("watch", "used", true);
    let (user, resources) = ("root".to_owned(), vec!["*".to_owned()]);
    let out = world.say(Input::GrantsChanged { user, resources });
    assert_eq!(refused(&out), Some(Code::ConsentRefused), "rights are judged anew");
    world.watch("watch", "used", true);
    let out = world.say(Input::ClientDown { link: USER });
    assert_eq!(refused(&out), Some(Code::ConsentRefused));
    let out = world.watch("watch", "used", true);
    assert_eq!(refused(&out), Some(Code::ConsentRefused), "there is nobody to ask");
    assert_eq!(refused(&world.watch("watch", "gone", false)), Some(Code::SessionUnknown));
}

#[test]
fn a_watch_ends_with_its_session_and_with_its_watchers_right_but_not_with_a_grant_of_use() {
    let mut world = World::new();
    assert!(granted(&world.watch("one", "used", false)));
    let (user, resources) = ("root".to_owned(), Vec::new());
    world.say(Input::GrantsChanged { user, resources });
    assert!(world.state("one").is_some(), "watching is another right");
    let out = world.say(Input::TokenRevoked { token: "t-root".into() });
    assert!(world.state("one").is_none() && told(&out, false));
    let (user, token) = ("root".to_owned(), "t2".to_owned());
    world.say(Input::ClientUp { link: ADMIN, user, token, address: None });
    assert!(granted(&world.watch("two", "used", false)));
    world.say(Input::Kill { session: id("used"), code: Code::SessionKilled });
    world.later(Duration::from_secs(1));
    assert!(world.state("two").is_some(), "its last bytes are on their way");
    world.later(Duration::from_secs(11));
    assert!(world.state("two").is_none());
}

#[test]
fn a_paused_session_says_by_whom_and_goes_on() {
    let mut world = World::new();
    world.carried();
    let hold = |held| Input::Hold { session: id("used"), by: "root".into(), held };
    let out = world.say(hold(true));
    assert!(out.iter().any(|output| matches!(output, Output::Tell { link: AGENT, .. })));
    assert_eq!(world.state("used"), Some(SessionState::Paused));
    let view = world.core.session(&id("used"), world.now).unwrap();
    assert_eq!(view.life.paused_by.as_deref(), Some("root"));
    world.say(hold(false));
    assert_eq!(world.state("used"), Some(SessionState::Active));
    world.now += Duration::from_secs(61);
    assert_eq!(world.state("used"), Some(SessionState::Idle));
}

#[test]
fn a_session_whose_ends_said_goodbye_is_closing_until_its_pair_has_ended() {
    let mut world = World::new();
    world.carried();
    let pair = PairId([world.pairs; 16]);
    world.say(Input::Ended { link: USER, session: id("used"), code: Code::SessionClosed });
    let shown = world.core.sessions(None, world.now);
    assert_eq!(shown[0].state, SessionState::Closing);
    assert!(world.core.sessions(Some("root"), world.now).is_empty(), "it is not theirs");
    world.say(Input::PairEnded { pair });
    assert!(world.core.sessions(None, world.now).is_empty());
}

#[test]
fn what_a_watcher_kept_revives_no_watch_but_its_agent_does() {
    let mut world = World::new();
    let out = world.watch("watch", "used", false);
    let grant = out.into_iter().find_map(|output| match output {
        Output::Granted { link: ADMIN, grant, .. } => Some(grant),
        _ => None,
    });
    let grant = *grant.unwrap();
    // The broker was started anew and knows nothing of what ended before.
    let mut world = World::new();
    let leg = |world: &mut World| {
        let (pair, wish) = (PairId([9; 16]), LegWish::default());
        let (link, grant) = (ADMIN, grant.clone());
        world.say(Input::Leg { link, request: 7, grant, pair, udp: None, wish })
    };
    assert_eq!(refused(&leg(&mut world)), Some(Code::AgentOffline));
    assert!(world.state("watch").is_none());
    world.say(Input::AgentDown { link: AGENT });
    let registration = Registration {
        name: "box".into(),
        key: PublicKey("agent".into()),
        token: "j".into(),
        resources: vec![Resource::tcp("ssh", "127.0.0.1:22")],
        sessions: vec![grant.clone()],
        draining: false,
    };
    world.say(Input::AgentUp { link: AGENT, registration });
    assert_eq!(refused(&leg(&mut world)), None);
    assert!(world.state("watch").is_some());
}
