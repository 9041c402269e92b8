//! Whether the agent's targets can be reached, and how busy its machine is: looked at now and then, told when it changes.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::target::unreachable;
use crate::code::Code;
use crate::wire::{FromAgent, Resource, TargetHealth};

/// Between two looks at targets that can be reached: a service that went away is left out of its pool within this.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// As long as one cannot be: it is used again soon after it is back.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// For one connection; as long as a channel's.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Loads are told in steps: the broker takes those within a step for alike.
const LOAD_STEP: u32 = 25;

/// What is known of the targets: every resource that has failed, with what keeps it from being reached.
#[derive(Debug, Default)]
pub(super) struct Faults(watch::Sender<BTreeMap<String, Option<Code>>>);

impl Faults {
    /// A connection to the target of `resource` was made, or failed for this.
    pub(super) fn found(&self, resource: &str, fault: Option<Code>) {
        // What was never doubted is as good as reached.
        let known = self.0.borrow().get(resource).copied().flatten();
        if known != fault {
            let reached = fault.map_or("yes", Code::as_str);
            tracing::info!(resource, reached, "target");
            self.0.send_modify(|all| {
                all.insert(resource.to_owned(), fault);
            });
        }
    }
}

/// The looking task, and what is known; it ends when this is dropped.
pub(super) struct Health {
    faults: watch::Receiver<BTreeMap<String, Option<Code>>>,
    load: watch::Receiver<u32>,
    _stop: DropGuard,
}

impl Health {
    /// Watches over the targets of `resources` from now on: those that want it all the time, others while they fail. Only TCP
    /// services are looked at: a datagram need not be answered.
    pub(super) fn start(resources: &[Resource], faults: Arc<Faults>) -> Self {
        let targets: Vec<_> = resources.iter().filter(|it| it.kind.is_tcp()).cloned().collect();
        let (tell, load) = watch::channel(0);
        let seen = faults.0.subscribe();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = watch_over(&targets, &faults, &tell) => {}
                () = stopped.cancelled() => {}
            }
        });
        Self { faults: seen, load, _stop: stop.drop_guard() }
    }

    /// Waits until something is known that has not been told.
    pub(super) async fn changed(&mut self) {
        let changed = tokio::select! {
            changed = self.faults.changed() => changed,
            changed = self.load.changed() => changed,
        };
        if changed.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// All that is known, as the broker is told.
    pub(super) fn told(&mut self) -> FromAgent {
        let load_percent = *self.load.borrow_and_update();
        let target = |(resource, fault): (&String, &Option<Code>)| TargetHealth {
            resource: resource.clone(),
            fault: *fault,
        };
        let targets = self.faults.borrow_and_update().iter().map(target).collect();
        FromAgent::Health { targets, load_percent }
    }
}

async fn watch_over(resources: &[Resource], faults: &Faults, load: &watch::Sender<u32>) {
    let mut failing = faults.0.subscribe();
    loop {
        let fails = |name: &String| faults.0.borrow().get(name).is_some_and(Option::is_some);
        let mut looks = JoinSet::new();
        for resource in resources.iter().filter(|it| it.probe || fails(&it.name)) {
            let (name, target) = (resource.name.clone(), resource.target.clone());
            looks.spawn(async move { (name, look(&target).await) });
        }
        for (name, fault) in looks.join_all().await {
            faults.found(&name, fault);
        }
        let now = load_percent() / LOAD_STEP * LOAD_STEP;
        load.send_if_modified(|told| std::mem::replace(told, now) != now);
        failing.mark_unchanged();
        let pause =
            if failing.borrow().values().any(Option::is_some) { LOOK_AGAIN } else { LOOK_EVERY };
        tokio::select! {
            () = sleep(pause) => {}
            // A connection failed: it is looked at again soon.
            _ = failing.changed() => sleep(LOOK_AGAIN).await,
        }
    }
}

/// What keeps a connection from being made; none is kept.
async fn look(target: &str) -> Option<Code> {
    let dialled = timeout(DIAL_TIMEOUT, TcpStream::connect(target)).await;
    let error = match dialled {
        Ok(Ok(_)) => return None,
        Ok(Err(error)) => error,
        Err(_) => std::io::ErrorKind::TimedOut.into(),
    };
    Some(unreachable(target, &error).code)
}

/// The machine's load over the last minute (proc_loadavg(5)), percent of its cores; 0 where that is not told.
fn load_percent() -> u32 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = text.split_whitespace().next().and_then(|load| load.parse::<f64>().ok());
    let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
    percent(load.unwrap_or(0.0) / cores)
}

fn percent(part: f64) -> u32 {
    (part * 100.0).clamp(0.0, 10_000.0) as u32
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn faults(told: FromAgent) -> Vec<(String, Option<Code>)> {
        let FromAgent::Health { targets, .. } = told else { panic!("{told:?}") };
        targets.into_iter().map(|target| (target.resource, target.fault)).collect()
    }

    async fn gone() -> String {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        free.local_addr().unwrap().to_string()
    }

    #[tokio::test]
    async fn a_target_that_refuses_is_told_if_it_is_looked_at() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap().to_string();
        let gone = gone().await;
        let probed = |resource| Resource { probe: true, ..resource };
        let resources = [
            probed(Resource::tcp("a", here)),
            probed(Resource::tcp("b", gone.clone())),
            Resource::tcp("c", gone.clone()),
            probed(Resource::udp("d", gone)),
        ];
        let mut health = Health::start(&resources, Arc::default());
        while faults(health.told()).is_empty() {
            health.changed().await;
        }
        assert_eq!(faults(health.told()), [("b".to_owned(), Some(Code::TargetRefused))]);
    }

    #[tokio::test]
    async fn what_failed_once_is_looked_at_until_it_is_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap().to_string();
        let known = Arc::new(Faults::default());
        known.found("a", None);
        known.found("a", Some(Code::TargetTimeout));
        let mut health = Health::start(&[Resource::tcp("a", here)], known);
        assert_eq!(faults(health.told()), [("a".to_owned(), Some(Code::TargetTimeout))]);
        while faults(health.told()) != [("a".to_owned(), None)] {
            health.changed().await;
        }
    }

    #[test]
    fn load_is_a_percentage_within_bounds() {
        assert_eq!((percent(0.5), percent(-1.0), percent(1e9)), (50, 0, 10_000));
    }
}
