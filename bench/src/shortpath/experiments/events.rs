//! Whether every byte arrives once and in order while the network under a session changes all the time.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use switchback_bench::lab::Lab;

use super::{Case, Experiment};
use crate::shortpath::duplex::{Duplex, Tally};
use crate::shortpath::goals::{Goal, Metric, Sample, Statistic};
use crate::shortpath::peers::{PeerKind, dial, sum_of};
use crate::shortpath::scene::{DEAD, Distances, Trial, in_lab};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "events",
    title: "Random path events",
    claim: "Over 10,000 random path events no byte is lost, doubled or reordered, and nothing dies.",
    who: "switchback; connections of the others die of the first new address",
    rounds: 10,
    cases,
};

const EVENTS: Metric = Metric { name: "events", unit: "events" };
/// Bytes compared, there and back.
const COMPARED: Metric = Metric { name: "compared", unit: "MiB" };
/// Streams in which a byte came that is not the one sent at its place.
const WRONG: Metric = Metric { name: "streams_with_bytes_lost_doubled_reordered", unit: "streams" };
/// Bytes that had not come back when the network had long been well again.
const MISSING: Metric = Metric { name: "missing", unit: "bytes" };
/// From the end of a storm until all that was sent by then is back.
const RECOVERED: Metric = Metric { name: "all_back_after_a_storm", unit: "s" };
const SILENCE: Metric = Metric { name: "longest_silence", unit: "s" };
const DUP_SENT: Metric = Metric { name: "dup_sent", unit: "frames" };
const BLACK_HOLES: Metric = Metric { name: "black_holes", unit: "times" };

const DISTANCES: Distances = Distances { path: 20 };
/// Between looks at what has come back.
const LOOK: Duration = Duration::from_millis(10);
/// Before the first event: legs attach.
const SETTLE: Duration = Duration::from_millis(1500);
/// Events in a row. Each NAT forgets its mappings each two seconds meanwhile, and half of the time some link is cut, so little
/// gets through and TCP connections live for about a second. After a storm the network is well until all is back.
const STORM: u32 = 100;
/// Between events, in milliseconds: some fall into the same round trip, others leave time for a new path.
const PAUSE_MS: std::ops::Range<u64> = 5..95;
/// What cuts or narrows a way ends after this, in milliseconds: half of it within a round trip or two.
const CUT_MS: [std::ops::Range<u64>; 2] = [10..60, 60..1_500];

/// Keystrokes, and bursts that count as bulk: 0.4 MB/s.
const SMALL: (usize, Duration) = (64, Duration::from_millis(5));
const LARGE: (usize, Duration) = (20_000, Duration::from_millis(50));

fn cases(quick: bool) -> Vec<Case> {
    let (storms, patience) = if quick { (1, 45) } else { (10, 60) };
    let patience = Duration::from_secs(patience);
    vec![Case {
        name: format!("{storms} x {STORM} random events a round, 20 a second"),
        peers: vec![PeerKind::Switchback],
        goals: vec![
            Goal::at_most("switchback", WRONG, Statistic::Sum, 0.0),
            Goal::at_most("switchback", MISSING, Statistic::Sum, 0.0),
            Goal::at_most("switchback", DEAD, Statistic::Sum, 0.0),
        ],
        measure: Box::new(move |trial| measure(trial, storms, patience)),
    }]
}

fn measure(trial: Trial<'_>, storms: u32, patience: Duration) -> Result<Sample> {
    in_lab(trial, &DISTANCES.topology(""), |scene, tunnel| {
        tunnel.client()?;
        let start = |(chunk, every)| {
            let stream = dial(scene.ground, tunnel.entry())?;
            Duplex::start(stream, chunk, every)
        };
        let streams = [start(SMALL)?, start(LARGE)?];
        let begun = Instant::now();
        while streams.iter().any(|stream| stream.back() == 0) {
            ensure!(begun.elapsed() < scene.patience, "nothing comes back through the tunnel");
            thread::sleep(LOOK);
        }
        thread::sleep(SETTLE);
        let mut weather = Weather::new(scene.ground.shaped()?, trial.seed);
        let (mut events, mut recovered) = (0, Vec::new());
        for _ in 0..storms {
            for _ in 0..STORM {
                weather.happen()?;
            }
            events += STORM;
            weather.clear()?;
            let Some(took) = catch_up(&streams, patience) else { break };
            recovered.push(took);
        }
        let told = tunnel.session();
        let deadline = Instant::now() + patience;
        let left = || deadline.saturating_duration_since(Instant::now());
        let tallies: Vec<Tally> = streams.into_iter().map(|stream| stream.finish(left())).collect();
        let mut sample = sample(&tallies).with(EVENTS, f64::from(events));
        for took in recovered {
            sample = sample.with(RECOVERED, took.as_secs_f64());
        }
        Ok(sample
            .with_some(DUP_SENT, sum_of(&told, "dup_sent"))
            .with_some(BLACK_HOLES, sum_of(&told, "black_holes")))
    })
}

/// Until all that was sent by now is back; how long that took, if it did.
fn catch_up(streams: &[Duplex], patience: Duration) -> Option<Duration> {
    let begun = Instant::now();
    let sent: Vec<u64> = streams.iter().map(Duplex::sent).collect();
    while begun.elapsed() < patience && !streams.iter().any(Duplex::is_over) {
        if streams.iter().zip(&sent).all(|(stream, sent)| stream.back() >= *sent) {
            return Some(begun.elapsed());
        }
        thread::sleep(LOOK);
    }
    None
}

fn sample(tallies: &[Tally]) -> Sample {
    let count = |is: fn(&Tally) -> bool| tallies.iter().filter(|tally| is(tally)).count() as f64;
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>() as f64;
    let silence = tallies.iter().map(|tally| tally.silence).max().unwrap_or_default();
    let mut sample = Sample::default()
        .with(COMPARED, sum(|tally| tally.back) / f64::from(1 << 20))
        .with(WRONG, count(|tally| tally.wrong.is_some()))
        .with(MISSING, sum(|tally| tally.sent.saturating_sub(tally.back)))
        .with(DEAD, count(|tally| tally.ended.is_some()))
        .with(SILENCE, silence.as_secs_f64());
    for tally in tallies {
        for why in [&tally.wrong, &tally.ended].into_iter().flatten() {
            sample = sample.told("died", why.clone());
        }
    }
    sample
}

/// Where something can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Link(&'static str),
    Nat(&'static str),
}

/// Something that happens to the network.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    /// Settings change, and after a while other ones follow: a cut ends.
    Set { at: Place, text: String, ends: Option<(Duration, &'static str)> },
    /// A NAT forgets its mappings; with an address that one changes, too.
    Rebind { nat: &'static str, address: Option<Ipv4Addr> },
    /// The client changes its own address.
    Roam,
}

const LINKS: [&str; 3] = ["client", "agent", "server"];
/// Outer networks of the two NATs, without the last number.
const NATS: [(&str, [u8; 3]); 2] = [("client-nat", [203, 0, 113]), ("agent-nat", [198, 51, 100])];
const HOME: [&str; 2] = ["192.168.1.2/24", "192.168.1.77/24"];

/// What a link is like when nothing happens to it.
const CALM: &str = "jitter=0ms,loss=0%,reorder=0%,duplicate=0%,corrupt=0%,rate=off,mtu=off,\
                    blackhole=off";

/// One of everything a network does, changes of its weather most often.
fn random_event(random: &mut StdRng) -> Event {
    let link = Place::Link(LINKS[random.random_range(0..LINKS.len())]);
    let (nat, net) = NATS[random.random_range(0..NATS.len())];
    let way = ["up.", "down.", ""][random.random_range(0..3)];
    let length = CUT_MS[random.random_range(0..CUT_MS.len())].clone();
    let cut = random.random_range(length);
    let cut = Duration::from_millis(cut);
    let mut per_mille = |most: u32| random.random_range(0..=most);
    let set = |at, text, ends: Option<&'static str>| {
        let ends = ends.map(|text| (cut, text));
        Event::Set { at, text, ends }
    };
    match per_mille(999) {
        0..250 => {
            let (delay, jitter) = (per_mille(30), per_mille(5));
            set(link, format!("{way}delay={delay}ms,{way}jitter={jitter}ms"), None)
        }
        250..470 => {
            let loss = per_mille(80).saturating_sub(20);
            set(link, format!("{way}loss={}.{}%", loss / 10, loss % 10), None)
        }
        470..560 => {
            let (reorder, double, corrupt) = (per_mille(30), per_mille(30), per_mille(3));
            let part = |name, of: u32| format!("{way}{name}={}.{}%", of / 10, of % 10);
            let parts =
                [part("reorder", reorder), part("duplicate", double), part("corrupt", corrupt)];
            set(link, parts.join(","), None)
        }
        560..600 => set(link, format!("{way}rate={}mbit", 10 + per_mille(90)), None),
        600..630 => set(link, "rate=off".into(), None),
        630..760 => set(link, format!("{way}blackhole"), Some("blackhole=off")),
        760..880 => {
            let how = ["drop", "reject", "drop-in", "drop-out"][per_mille(3) as usize];
            set(Place::Nat(nat), format!("udp={how}"), Some("udp=allow"))
        }
        880..930 => set(link, format!("mtu={}/silent", 1_240 + per_mille(40)), Some("mtu=off")),
        930..970 => Event::Rebind { nat, address: None },
        970..985 => {
            let last = 2 + u8::try_from(per_mille(200)).unwrap_or(0);
            Event::Rebind { nat, address: Some(Ipv4Addr::new(net[0], net[1], net[2], last)) }
        }
        _ => Event::Roam,
    }
}

/// A lab's network, and what is about to end in it.
struct Weather<'a> {
    lab: &'a Lab,
    random: StdRng,
    ends: Vec<(Instant, Place, &'static str)>,
    home: usize,
}

impl<'a> Weather<'a> {
    fn new(lab: &'a Lab, seed: u64) -> Self {
        Self { lab, random: StdRng::seed_from_u64(seed), ends: Vec::new(), home: 0 }
    }

    /// The next event, and a pause in which cuts end that are due.
    fn happen(&mut self) -> Result<()> {
        let next = Instant::now() + Duration::from_millis(self.random.random_range(PAUSE_MS));
        let event = random_event(&mut self.random);
        self.apply(event)?;
        loop {
            let now = Instant::now();
            self.end_cuts(now)?;
            if now >= next {
                return Ok(());
            }
            let due = self.ends.iter().map(|(at, ..)| *at).chain([next]).min().unwrap_or(next);
            thread::sleep(due.saturating_duration_since(now));
        }
    }

    fn apply(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Set { at, text, ends } => {
                self.set(at, &text)?;
                if let Some((after, text)) = ends {
                    self.ends.push((Instant::now() + after, at, text));
                }
            }
            Event::Rebind { nat, address } => self.lab.nat(nat).rebind(address)?,
            Event::Roam => {
                let (old, new) = (HOME[self.home], HOME[1 - self.home]);
                self.lab.host("client").readdress(old, new)?;
                self.home = 1 - self.home;
            }
        }
        Ok(())
    }

    fn end_cuts(&mut self, now: Instant) -> Result<()> {
        let (due, ends) = self.ends.drain(..).partition(|(at, ..)| *at <= now);
        self.ends = ends;
        let due: Vec<(Instant, Place, &str)> = due;
        due.into_iter().try_for_each(|(_, at, text)| self.set(at, text))
    }

    /// All is well again.
    fn clear(&mut self) -> Result<()> {
        self.ends.clear();
        LINKS.into_iter().try_for_each(|link| self.set(Place::Link(link), CALM))?;
        NATS.into_iter().try_for_each(|(nat, _)| self.set(Place::Nat(nat), "udp=allow"))
    }

    fn set(&self, at: Place, text: &str) -> Result<()> {
        match at {
            Place::Link(link) => self.lab.link(link).set(text)?,
            Place::Nat(nat) => self.lab.nat(nat).block(text)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use switchback_bench::lab::nat::Policy;
    use switchback_bench::lab::presets::Link;

    use super::*;

    #[test]
    fn every_kind_of_event_comes_and_the_lab_understands_all_of_them() {
        let mut random = StdRng::seed_from_u64(1);
        let (mut rebinds, mut roams, mut cuts) = (0, 0, 0);
        for _ in 0..5_000 {
            match random_event(&mut random) {
                Event::Rebind { address, .. } => rebinds += usize::from(address.is_some()),
                Event::Roam => roams += 1,
                Event::Set { at, text, ends } => {
                    cuts += usize::from(ends.is_some());
                    let texts = [Some(text.as_str()), ends.map(|(_, text)| text)];
                    for text in texts.into_iter().flatten() {
                        match at {
                            Place::Link(_) => drop(text.parse::<Link>().unwrap()),
                            Place::Nat(_) => drop(text.parse::<Policy>().unwrap()),
                        }
                    }
                }
            }
        }
        assert!(rebinds > 20 && roams > 20 && cuts > 500, "{rebinds} {roams} {cuts}");
        CALM.parse::<Link>().unwrap();
    }

    #[test]
    fn a_byte_that_is_wrong_or_missing_and_an_end_are_counted() {
        let fine = Tally { sent: 7, back: 7, ..Tally::default() };
        let torn = Tally { sent: 9, back: 4, wrong: Some("byte 4".into()), ..Tally::default() };
        let dead = Tally { sent: 9, back: 9, ended: Some("closed".into()), ..Tally::default() };
        let sample = sample(&[fine, torn, dead]);
        let of = |metric| sample.figures.iter().find(|(it, _)| *it == metric).unwrap().1;
        assert_eq!((of(WRONG), of(MISSING), of(DEAD)), (1.0, 5.0, 1.0));
    }
}
