//! Which CPU the relay and the generator run on, and the limit of open files.

use std::io;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use super::netns::{Network, Place};

/// CPUs of a run. `None` where the machine has only one to give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Placement {
    pub(crate) relay_cpu: Option<usize>,
    pub(crate) generator_cpu: Option<usize>,
}

impl Placement {
    /// The first two CPUs this process may use: relay on the first, generator on the second.
    pub(crate) fn choose() -> Placement {
        let Ok(allowed) = sched_getaffinity(None) else { return Placement::default() };
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        match (cpus.next(), cpus.next()) {
            (relay_cpu @ Some(_), generator_cpu @ Some(_)) => {
                Placement { relay_cpu, generator_cpu }
            }
            _ => Placement::default(),
        }
    }

    /// Pins the calling thread to the generator's CPU.
    ///
    /// # Errors
    /// The kernel refuses the CPU (taken away since [`Placement::choose`]).
    pub(crate) fn pin_generator(self) -> io::Result<()> {
        pin_this_thread(self.generator_cpu)
    }

    /// Starts `command` in the relay's namespace, all its threads on the relay's CPU.
    ///
    /// Affinity and namespace are inherited, so the calling thread takes them for the moment. It is
    /// the calling thread, because the kernel's death signal (prctl(2)) follows the parent *thread*.
    /// The child may pin its own threads only within its CPU.
    ///
    /// # Errors
    /// Pinning, entering the namespace or spawning failed.
    pub(crate) fn spawn_relay(self, network: Network, command: &mut Command) -> Result<Child> {
        let ours = sched_getaffinity(None)?;
        pin_this_thread(self.relay_cpu).context("pinning to the relay's CPU")?;
        let child = network.at(Place::Relay, || Ok(command.spawn()?));
        sched_setaffinity(None, &ours).context("returning from the relay's CPU")?;
        child
    }
}

/// Raises the soft limit of open files to the hard one and returns it (`None`: unlimited).
pub(crate) fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

fn pin_this_thread(cpu: Option<usize>) -> io::Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_bound_to_the_relay_cpu_and_we_are_not() {
        let placement = Placement::choose();
        let Some(cpu) = placement.relay_cpu else { return };
        let before = sched_getaffinity(None).unwrap();
        let mut command = Command::new("cat");
        command.arg("/proc/self/status").stdout(std::process::Stdio::piped());
        let child = placement.spawn_relay(Network::Host, &mut command).unwrap();
        let output = child.wait_with_output().unwrap();
        let status = String::from_utf8(output.stdout).unwrap();
        assert!(status.contains(&format!("Cpus_allowed_list:\t{cpu}\n")), "{status}");
        assert!(sched_getaffinity(None).unwrap() == before);
    }
}
