//! A broker that is killed while ends enrol with it.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use switchback_control::agent::{self, AgentConfig, AgentOptions};
use switchback_control::invite::{Invite, InviteKind};
use switchback_control::udp::UdpOptions;
use switchback_control::wire::Resource;
use switchback_control::{Code, Fault};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::support::{Bed, Io, eventually};

const ENDS: usize = 24;
const SOON: Duration = Duration::from_secs(60);

/// Agents, each with a join string for one.
struct Ends {
    home: PathBuf,
    joins: Vec<String>,
    /// A runtime each, so that one dies whole.
    running: Vec<Runtime>,
}

fn name(number: usize) -> String {
    format!("end-{number}")
}

impl Ends {
    fn of(bed: &Bed) -> Self {
        let issue = |number| bed.run(&["token", "agent", &name(number)]).ok().json();
        let join = |number| issue(number)["invite"].as_str().unwrap().to_owned();
        let (joins, running) = ((0..ENDS).map(join).collect(), Vec::new());
        Self { home: bed.home().join("ends"), joins, running }
    }

    /// The agent of this number, with its state in `home`, until it gives up.
    fn run(
        &self,
        number: usize,
        home: &Path,
    ) -> impl Future<Output = Result<(), Fault>> + Send + 'static {
        let config = AgentConfig {
            invite: Invite::parse(&self.joins[number], InviteKind::Join).unwrap(),
            name: name(number),
            resources: vec![Resource::tcp(name(number), "127.0.0.1:1")],
            warm_legs: 0,
            state_dir: home.join(name(number)),
        };
        let options = AgentOptions { udp: UdpOptions::off(), ..AgentOptions::default() };
        agent::run_with(config, options, CancellationToken::new())
    }

    fn started(&self, number: usize) -> Runtime {
        let runtime = runtime();
        runtime.spawn(self.run(number, &self.home));
        runtime
    }

    /// One more, or none if all run.
    fn start_next(&mut self) {
        if self.running.len() < ENDS {
            self.running.push(self.started(self.running.len()));
        }
    }

    /// Every second one dies and begins again.
    fn restart_some(&mut self) {
        for number in (0..self.running.len()).step_by(2) {
            std::mem::replace(&mut self.running[number], runtime()).shutdown_background();
            self.running[number] = self.started(number);
        }
    }

    /// Enrolments that ends have an answer about, by name.
    fn acknowledged(&self) -> BTreeMap<String, Value> {
        let id = |number| {
            let file = self.home.join(name(number)).join("enrolment.json");
            let state: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
            (!state["id"].is_null()).then(|| (name(number), state["id"].clone()))
        };
        (0..ENDS).filter_map(id).collect()
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Enrolments that are good, by name; no name has two.
fn enrolled(bed: &Bed) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for it in bed.run(&["token", "list"]).ok().json().as_array().unwrap() {
        if it["enrolment"].is_object() && it["revoked_ms"].is_null() {
            let twice = all.insert(it["name"].as_str().unwrap().to_owned(), it["id"].clone());
            assert_eq!(twice, None, "{it}");
        }
    }
    all
}

#[test]
fn enrolments_that_were_answered_outlive_kill_9_and_those_that_were_not_are_made_up_for() {
    let mut bed = Bed::without_agent(Io::Epoll, None);
    let mut ends = Ends::of(&bed);
    let (mut answered, mut unanswered) = (BTreeMap::new(), 0);
    for some in (1..ENDS).step_by(3) {
        eventually("some to have enrolled", SOON, || {
            ends.start_next();
            (ends.acknowledged().len() >= some).then_some(())
        });
        bed.kill_server();
        let now = ends.acknowledged();
        assert!(answered.iter().all(|(name, id)| now.get(name) == Some(id)), "none was changed");
        answered = now;
        bed.restart_server();
        let known = enrolled(&bed);
        for (name, id) in &answered {
            assert_eq!(known.get(name), Some(id), "{name} was told that it is enrolled");
        }
        unanswered += known.len() - answered.len();
        ends.restart_some();
    }
    println!("{unanswered} answers may have been lost");
    eventually("all to have enrolled", SOON, || {
        ends.start_next();
        (ends.acknowledged().len() == ENDS).then_some(())
    });
    eventually("all to be online", SOON, || {
        let agents = bed.run(&["agents"]).json();
        let online = agents.as_array()?.iter().filter(|it| it["online"].is_object()).count();
        (online == ENDS).then_some(())
    });
    let all = ends.acknowledged();
    assert_eq!(enrolled(&bed), all);
    assert!(answered.iter().all(|(name, id)| all.get(name) == Some(id)));
    let thief = bed.home().join("thief");
    for number in 0..ENDS {
        let refused = runtime().block_on(ends.run(number, &thief));
        assert_eq!(refused.map_err(|fault| fault.code), Err(Code::JoinUsed), "{number}");
    }
}
