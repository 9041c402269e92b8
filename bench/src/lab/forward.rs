//! The thread that is the network: it moves packets between the hosts' devices and [`Network`].
//!
//! One thread per lab, asleep in ppoll(2) until a host sends or a packet on a wire is due. Its timer
//! slack is 1 ns instead of the usual 50 us, which is what makes a delay of 20 ms 20.04 ms; a higher
//! priority or spinning before the deadline measured no better.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::device::Device;
use super::network::{Arrival, Network};

/// Packets taken from one host before the others have their turn: a burst of 64 kB.
const BATCH: usize = 44;

/// Largest read: an IP packet.
const PACKET_BYTES_MAX: usize = 65_535;

/// The running network. Dropping it removes the hosts' devices.
#[derive(Debug)]
pub(super) struct Forwarder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    network: Mutex<Network>,
    started: Instant,
    wake: OwnedFd,
    ending: AtomicBool,
}

impl Forwarder {
    /// Starts moving packets; device `i` is the network's device `i`.
    ///
    /// # Errors
    /// No eventfd or no thread.
    pub(super) fn start(network: Network, devices: Vec<Device>) -> io::Result<Forwarder> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            network: Mutex::new(network),
            started: Instant::now(),
            wake,
            ending: AtomicBool::new(false),
        });
        let here = Arc::clone(&shared);
        let forward = move || Loop::new(here, devices).run();
        let thread = thread::Builder::new().name("lab".into()).spawn(forward)?;
        Ok(Forwarder { shared, thread: Some(thread) })
    }

    /// Reads or changes the network between two packets. The time is that since the start.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Network, Duration) -> T) -> T {
        let mut network = self.shared.lock();
        let result = act(&mut network, self.shared.started.elapsed());
        drop(network);
        self.shared.wake();
        result
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // If it panicked, its devices are gone as well.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Network> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // A full counter wakes just as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

struct Loop {
    shared: Arc<Shared>,
    /// `None`: it failed, its host is cut off.
    devices: Vec<Option<Device>>,
    ready: Vec<usize>,
    arrivals: Vec<Arrival>,
    buffer: Vec<u8>,
}

impl Loop {
    fn new(shared: Arc<Shared>, devices: Vec<Device>) -> Loop {
        let devices = devices.into_iter().map(Some).collect();
        let buffer = vec![0; PACKET_BYTES_MAX];
        Loop { shared, devices, ready: Vec::new(), arrivals: Vec::new(), buffer }
    }

    fn run(mut self) {
        // Where it is refused, delays are up to 50 us longer.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        while !self.shared.ending.load(Ordering::Acquire) {
            let due = self.step();
            self.deliver();
            if self.sleep(due).is_err() {
                return;
            }
        }
    }

    /// Takes what hosts have sent, moves on what is due; when to do so next.
    fn step(&mut self) -> Option<Duration> {
        let mut network = self.shared.lock();
        for index in self.ready.drain(..) {
            for _ in 0..BATCH {
                let Some(device) = &self.devices[index] else { break };
                match device.read(&mut self.buffer) {
                    Ok(Some(bytes)) => {
                        let now = self.shared.started.elapsed();
                        let packet = self.buffer[..bytes].to_vec();
                        network.send(now, index, packet, &mut self.arrivals);
                    }
                    Ok(None) => break,
                    Err(_) => self.devices[index] = None,
                }
            }
        }
        network.advance(self.shared.started.elapsed(), &mut self.arrivals);
        network.next_due()
    }

    fn deliver(&mut self) {
        let mut refused = 0;
        for Arrival { device, packet } in self.arrivals.drain(..) {
            let taken = self.devices[device].as_ref().is_some_and(|device| device.write(&packet));
            refused += u64::from(!taken);
        }
        if refused > 0 {
            self.shared.lock().count_refused(refused);
        }
    }

    /// Waits until `due`, a packet or a change of settings.
    fn sleep(&mut self, due: Option<Duration>) -> io::Result<()> {
        let open = || self.devices.iter().enumerate();
        let open = || open().filter_map(|(index, device)| Some((index, device.as_ref()?)));
        let mut polled = vec![PollFd::from_borrowed_fd(self.shared.wake.as_fd(), PollFlags::IN)];
        polled.extend(
            open().map(|(_, device)| PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN)),
        );
        let timeout = due.map(|due| timespec(due.saturating_sub(self.shared.started.elapsed())));
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !polled[0].revents().is_empty() {
            let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
        }
        let heard = open().zip(&polled[1..]).filter(|(_, polled)| !polled.revents().is_empty());
        self.ready = heard.map(|((index, _), _)| index).collect();
        Ok(())
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
