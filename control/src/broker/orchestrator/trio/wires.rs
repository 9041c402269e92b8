//! What links, pairs and the gateway do with what is on its way, and what the ends and the broker answer.
use std::time::Duration;

use switchback_engine::{LegSide, PairId};
use switchback_shortpath::LegKind;

use super::end::Via;
use super::world::{Parcel, Told, Trio};
use super::{AGENT, CLIENT, MESSAGE, STUN};
use crate::broker::orchestrator::{
    Input, LinkId, Notice, Orchestrator, Output, Registration, Reported, SessionLimits,
};
use crate::broker::udp::UdpKeys;
use crate::wire::{Candidate, LegWish, LossCounts, PublicKey, Resource, SessionId, SessionReport};

/// How long an end waits before it connects, or asks for a leg, again.
pub(super) const AGAIN: Duration = Duration::from_secs(1);
/// Between two messages of the application, unless a story says otherwise.
pub(super) const SPEAK: Duration = Duration::from_millis(10);

impl Trio {
    pub(super) fn say(&mut self, end: usize, input: Input) {
        if self.ends[end].linked {
            self.send(self.delay, Parcel::Say(self.epoch, input));
        }
    }

    /// The broker's process is gone, and with it the gateway's pairs; ends hear of it as of any closed connection.
    pub(super) fn kill_broker(&mut self) {
        self.epoch += 1;
        self.broker = Orchestrator::new(SessionLimits::default());
        self.down = true;
        let pairs: Vec<_> = self.pairs.keys().copied().collect();
        pairs.into_iter().for_each(|pair| self.cut(pair));
        [CLIENT, AGENT].into_iter().for_each(|end| self.lose_link(end));
    }

    pub(super) fn start_broker(&mut self) {
        self.down = false;
    }

    pub(super) fn lose_link(&mut self, end: usize) {
        if std::mem::take(&mut self.ends[end].linked) {
            let link = self.links[end];
            let gone = [Input::ClientDown { link }, Input::AgentDown { link }];
            let [client, agent] = gone;
            self.tell_broker(if end == CLIENT { client } else { agent });
            self.send(AGAIN, Parcel::Link(end));
        }
    }

    /// The gateway's end of every pair is closed.
    pub(super) fn cut_pairs(&mut self) {
        let pairs: Vec<_> = self.pairs.keys().copied().collect();
        pairs.into_iter().for_each(|pair| self.cut(pair));
    }

    pub(super) fn cut(&mut self, pair: PairId) {
        let Some(legs) = self.pairs.remove(&pair) else { return };
        for end in [CLIENT, AGENT].into_iter().filter(|end| legs[*end]) {
            self.send(self.delay, Parcel::Down(pair, end));
        }
        self.tell_broker(Input::PairEnded { pair });
    }

    fn tell_broker(&mut self, input: Input) {
        if self.down {
            return;
        }
        for output in self.broker.handle(self.net.now, input) {
            self.obey(output);
        }
    }

    fn obey(&mut self, output: Output) {
        let access = |keys: &UdpKeys, session: &SessionId, side, udp: Option<Vec<Candidate>>| {
            udp.map(|candidates| keys.access(session, "ada", side, candidates, 1_800_000_000))
        };
        let (end, told) = match output {
            Output::Offer { grant, pair, udp, .. } => {
                let udp = access(&self.keys, &grant.session, LegSide::Agent, udp);
                (AGENT, Told::Offer(*grant, pair, udp))
            }
            Output::Granted { grant, pair, udp, .. } => {
                let udp = access(&self.keys, &grant.session, LegSide::Client, udp);
                (CLIENT, Told::Granted(*grant, pair, udp))
            }
            Output::ClientLeg { pair, .. } => (CLIENT, Told::Leg(pair)),
            Output::Tell { end, notice: Notice::Candidates(candidates), .. } => {
                let end = if end == LegSide::Client { CLIENT } else { AGENT };
                (end, Told::Candidates(candidates))
            }
            Output::EndPair { pair } => return self.cut(pair),
            // Refused for now: it asks again by itself.
            _ => return,
        };
        self.send(self.delay, Parcel::Told(end, told));
    }

    pub(super) fn deliver(&mut self, parcel: Parcel) {
        let now = self.net.now;
        match parcel {
            Parcel::Say(epoch, input) if epoch == self.epoch => self.tell_broker(input),
            Parcel::Told(end, told) => self.told(end, told),
            Parcel::Dial(epoch, pair, end) if epoch == self.epoch && !self.down => {
                self.joined(pair, end);
            }
            Parcel::Up(pair, end) if self.pairs.contains_key(&pair) => {
                self.ends[end].attach(now, Via::Pair(pair));
            }
            Parcel::Down(pair, end) => {
                self.ends[end].detach(now, Via::Pair(pair));
                if end == CLIENT {
                    self.send(Duration::ZERO, Parcel::Again);
                }
            }
            Parcel::Bytes(pair, end, bytes) => {
                let legs = &self.ends[end].legs;
                let leg = legs.iter().find(|leg| leg.via == Via::Pair(pair)).map(|leg| leg.id);
                leg.into_iter().for_each(|leg| self.ends[end].frame(now, leg, &bytes));
            }
            Parcel::Link(end) => self.link(end),
            Parcel::Again => self.ask_again(),
            Parcel::Tick => {
                self.tell_broker(Input::Tick);
                [CLIENT, AGENT].into_iter().for_each(|end| self.report(end));
                self.send(AGAIN, Parcel::Tick);
            }
            Parcel::Speak => {
                self.ends[CLIENT].speak(now, MESSAGE);
                self.send(self.speak, Parcel::Speak);
            }
            Parcel::Say(..) | Parcel::Dial(..) | Parcel::Up(..) => {}
        }
    }

    fn told(&mut self, end: usize, told: Told) {
        let now = self.net.now;
        let (pair, udp) = match told {
            Told::Granted(grant, pair, udp) | Told::Offer(grant, pair, udp) => {
                self.ends[end].grant = Some(grant);
                (pair, udp)
            }
            Told::Leg(pair) => (pair, None),
            Told::Candidates(candidates) => return self.ends[end].hear_of(now, &candidates),
        };
        udp.into_iter().for_each(|access| self.ends[end].search(now, access));
        // TCP's round trip, and the first bytes.
        self.send(3 * self.delay, Parcel::Dial(self.epoch, pair, end));
    }

    fn joined(&mut self, pair: PairId, end: usize) {
        let legs = self.pairs.entry(pair).or_default();
        legs[end] = true;
        if *legs == [true, true] {
            self.tell_broker(Input::PairStarted { pair });
            for end in [CLIENT, AGENT] {
                self.send(self.delay, Parcel::Up(pair, end));
            }
        }
    }

    fn link(&mut self, end: usize) {
        if self.down {
            return self.send(AGAIN, Parcel::Link(end));
        }
        let link = LinkId(self.number().into());
        (self.links[end], self.ends[end].linked) = (link, true);
        self.ends[end].told.clear();
        // The gateway is found anew.
        let now = self.net.now;
        self.ends[end].keeper.set_servers(now, vec![STUN]);
        if end == CLIENT {
            let (user, token) = ("ada".to_owned(), "token".to_owned());
            self.say(end, Input::ClientUp { link, user, token, address: None });
            self.report(end);
            return self.send(Duration::ZERO, Parcel::Again);
        }
        let registration = Registration {
            name: "lab".into(),
            key: PublicKey("agent".into()),
            token: "token-of-lab".into(),
            resources: vec![Resource::tcp("echo", "127.0.0.1:7")],
            sessions: self.ends[AGENT].grant.iter().cloned().collect(),
            draining: false,
        };
        self.say(end, Input::AgentUp { link, registration });
    }

    fn ask_again(&mut self) {
        let client = &self.ends[CLIENT];
        let Some(grant) = client.grant.clone().filter(|_| client.linked && !client.has_tcp())
        else {
            return;
        };
        let (link, udp) = (self.links[CLIENT], Some(client.candidates()));
        let pair = self.pair();
        self.say(
            CLIENT,
            Input::Leg { link, request: 2, grant, pair, udp, wish: LegWish::default() },
        );
        self.send(AGAIN, Parcel::Again);
    }

    /// What an end reports each second, and a client on a new link.
    fn report(&mut self, end: usize) {
        let Some(grant) = self.ends[end].grant.clone() else { return };
        let transport = self.ends[end].carried_by(self.net.now).map(LegKind::label);
        let report = SessionReport {
            session: grant.session.clone(),
            grant: None,
            transport: transport.map(str::to_owned),
            rtt: None,
            client_to_target: 0,
            target_to_client: 0,
            channels: 1,
            resumes: 0,
            paths: vec![],
            loss: LossCounts::default(),
            jitter_us: None,
            loss_ppm: None,
            held: None,
        };
        let reports = vec![Reported { report, grant: Some(grant) }];
        self.say(end, Input::Reports { link: self.links[end], reports });
    }

    /// What an end's keeper has found goes to the broker, and by it to the other end.
    pub(super) fn tell_candidates(&mut self) {
        for end in [CLIENT, AGENT] {
            let candidates = self.ends[end].candidates();
            if !self.ends[end].linked || self.ends[end].told == candidates {
                continue;
            }
            self.ends[end].told.clone_from(&candidates);
            let link = self.links[end];
            match (end, self.ends[end].grant.as_ref().map(|grant| grant.session.clone())) {
                (CLIENT, Some(session)) => {
                    self.say(end, Input::Candidates { link, session, candidates });
                }
                (CLIENT, None) => {}
                _ => self.say(end, Input::Network { link, candidates }),
            }
        }
    }
}
