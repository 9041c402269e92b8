//! Every workload over a direct connection: counts, never times.

use super::*;
use crate::peers::Dialling;
use crate::peers::direct::Direct;
use crate::report::metric::Metric;

fn conditions() -> Conditions {
    Conditions { window: Duration::from_millis(60), round: 3, dialer: Dialer::system_default() }
}

fn measure(workload: &Workload) -> Result<Option<Sample>> {
    sample(&mut Direct::new(Dialer::system_default()), workload, conditions())
}

fn measured(workload: &Workload) -> Sample {
    measure(workload).unwrap().unwrap()
}

fn value(sample: &Sample, metric: Metric) -> Option<f64> {
    sample.values.iter().find(|(m, _)| *m == metric).map(|(_, value)| *value)
}

fn labels(sample: &Sample) -> Vec<&str> {
    sample.histograms.iter().map(|histogram| histogram.label).collect()
}

#[test]
fn bulk_states_throughput_and_no_cpu_of_no_process() {
    for both_ways in [false, true] {
        let sample = measured(&Workload::Bulk { flows: 2, both_ways });
        assert!(value(&sample, Metric::Throughput).unwrap() > 0.0);
        assert_eq!(value(&sample, Metric::CpuPerGib), None);
        assert!(sample.histograms.is_empty());
    }
}

#[test]
fn messages_are_all_answered_at_every_size() {
    for message_bytes in [64, 1400] {
        let load = Workload::RequestResponse { connections: 5, rate: 3_000.0, message_bytes };
        let sample = measured(&load);
        assert_eq!((labels(&sample), sample.unanswered), (vec!["round-trip"], 0));
        let count = sample.histograms[0].histogram.len();
        assert!((100..300).contains(&count), "3,000/s for 60 ms are about 180: {count}");
        assert!(value(&sample, Metric::RttP999) >= value(&sample, Metric::RttP50));
    }
}

#[test]
fn a_closed_loop_counts_messages_per_second() {
    let sample = measured(&Workload::ClosedLoop { connections: 10, message_bytes: 64 });
    assert!(value(&sample, Metric::MessagesPerSecond).unwrap() > 100.0);
    assert_eq!((sample.unanswered, sample.late_share), (0, 0.0));
}

#[test]
fn mixed_states_the_latency_of_one_part_and_the_throughput_of_the_other() {
    let load = Workload::Mixed { bulk_flows: 2, connections: 5, rate: 2_000.0, message_bytes: 64 };
    let sample = measured(&load);
    assert_eq!((labels(&sample), sample.unanswered), (vec!["interactive"], 0));
    assert!(value(&sample, Metric::Throughput).unwrap() > 0.0);
    assert!(value(&sample, Metric::RttP99).unwrap() > 0.0);
}

#[test]
fn slow_readers_hold_nobody_else_up_for_ever() {
    let load = Workload::SlowReader {
        slow_flows: 2,
        read_kib_per_second: 64,
        connections: 5,
        rate: 2_000.0,
        message_bytes: 64,
    };
    let sample = measured(&load);
    assert_eq!((labels(&sample), sample.unanswered), (vec!["interactive"], 0));
    assert_eq!(value(&sample, Metric::RssGrowth), None, "there is no process");
}

#[test]
fn churn_times_every_session_it_counts() {
    let sample = measured(&Workload::Churn { concurrency: 4 });
    let sessions = value(&sample, Metric::SessionsPerSecond).unwrap() * sample.usage.wall_s;
    assert_eq!(labels(&sample), ["setup"]);
    assert_eq!(sample.histograms[0].histogram.len(), sessions.round() as u64);
    assert!(sessions > 10.0 && value(&sample, Metric::SessionsPerCpuSecond).is_none());
}

#[test]
fn short_flows_deliver_what_they_count() {
    let sample = measured(&Workload::ShortFlows { concurrency: 4, bytes: 100_000 });
    let flows = sample.histograms[0].histogram.len() as f64;
    let gbit = flows * 100_000.0 * 8.0 / 1e9 / sample.usage.wall_s;
    assert!((value(&sample, Metric::Throughput).unwrap() - gbit).abs() < 1e-9);
    assert!(flows > 4.0);
}

#[test]
fn loads_of_nothing_are_refused() {
    for load in [
        Workload::Bulk { flows: 0, both_ways: false },
        Workload::RequestResponse { connections: 0, rate: 1.0, message_bytes: 64 },
        Workload::RequestResponse { connections: 1, rate: 0.0, message_bytes: 64 },
        Workload::RequestResponse { connections: 1, rate: 1.0, message_bytes: 0 },
        Workload::Churn { concurrency: 0 },
        Workload::ShortFlows { concurrency: 1, bytes: 0 },
    ] {
        assert!(measure(&load).is_err(), "{load:?}");
    }
}

/// A direct connection that claims this process as its own, so that there is memory to look at.
struct Own(Direct);

impl Peer for Own {
    fn name(&self) -> &str {
        "own"
    }
    fn version(&self) -> &str {
        "test"
    }
    fn start(&mut self) -> Result<()> {
        Ok(())
    }
    fn stop(&mut self) -> Result<()> {
        Ok(())
    }
    fn open(&mut self, count: usize) -> Result<Vec<Flow>> {
        self.0.open(count)
    }
    fn dial(&mut self, count: usize) -> Result<Dialling> {
        self.0.dial(count)
    }
    fn pids(&self) -> Vec<rustix::process::Pid> {
        vec![rustix::process::getpid()]
    }
}

#[test]
fn idle_holds_the_sessions_it_was_asked_for_and_means_nothing_without_a_process() {
    let load = Workload::Idle { sessions: 150 };
    let sample = sample(&mut Own(Direct::new(Dialer::system_default())), &load, conditions());
    let sample = sample.unwrap().unwrap();
    assert_eq!(value(&sample, Metric::SessionsHeld), Some(150.0));
    assert!(value(&sample, Metric::RssBase).unwrap() > 0.0);
    assert!(value(&sample, Metric::IdleCpu).is_some());
    assert!(measure(&load).unwrap().is_none());
}
