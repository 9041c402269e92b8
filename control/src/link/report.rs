//! Which sessions to report on: those that moved, and all of them, with proof, on a new link. Pure.
use std::collections::HashMap;
use std::time::Duration;

use switchback_shortpath::{LegState, LegStats, RttFigures, SessionStats};

use crate::wire::{
    LossCounts, PathLeg, REPORT_LEGS_MAX, RttView, SealedGrant, SessionId, SessionReport,
};

/// Pause between reports.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Sessions per message: about 2 KiB each at most, with its grant and eight legs, under
/// [`MESSAGE_BYTES_MAX`](crate::wire::MESSAGE_BYTES_MAX).
const SESSIONS_PER_MESSAGE: usize = 32;
/// Bytes of grants in a `register`: leaves half of a message to the rest of it.
const REGISTER_GRANT_BYTES: usize = 32 * 1024;

/// Remembers what the broker was told over the present link.
#[derive(Debug, Default)]
pub struct Reporter {
    told: HashMap<SessionId, SessionReport>,
}

impl Reporter {
    /// A new link: its broker may be a new one, and knows nothing.
    pub fn link_up(&mut self) {
        self.told.clear();
    }

    /// The reports due now, one batch per message, from the present figures of all live sessions.
    pub fn due(
        &mut self,
        live: impl Iterator<Item = (SessionReport, SealedGrant)>,
    ) -> Vec<Vec<SessionReport>> {
        let mut told = HashMap::new();
        let mut due = Vec::new();
        for (report, grant) in live {
            match self.told.remove(&report.session) {
                Some(before) if before == report => {}
                Some(_) => due.push(report.clone()),
                None => due.push(SessionReport { grant: Some(grant), ..report.clone() }),
            }
            told.insert(report.session.clone(), report);
        }
        self.told = told;
        due.chunks(SESSIONS_PER_MESSAGE).map(<[_]>::to_vec).collect()
    }
}

/// A session's figures as reported; the byte counts are each end's own.
#[must_use]
pub fn figures(
    session: SessionId,
    stats: &SessionStats,
    client_to_target: u64,
    target_to_client: u64,
) -> SessionReport {
    SessionReport {
        session,
        grant: None,
        transport: stats.leg.map(|leg| leg.label().to_owned()),
        rtt: stats.rtt.map(rtt_view),
        client_to_target,
        target_to_client,
        channels: stats.channels,
        resumes: stats.legs_lost,
        paths: path_legs(stats),
        loss: LossCounts {
            dup_sent: stats.dup_sent,
            dup_bytes: stats.dup_bytes,
            dup_won: stats.dup_won,
            ms_saved: stats.ms_saved,
            black_holes: stats.black_holes,
            datagrams_dropped: stats.datagrams_dropped,
        },
        jitter_us: stats.rtt.map(|rtt| rtt.variation_us),
        loss_ppm: loss_ppm(stats),
        held: None,
    }
}

/// What the leg in use loses: TCP does not tell.
fn loss_ppm(stats: &SessionStats) -> Option<u32> {
    let carries = |leg: &&LegStats| leg.state == LegState::Selected && leg.kind.is_udp();
    stats.legs.iter().find(carries).map(|leg| leg.loss_ppm)
}

/// The legs of a session as messages carry them.
#[must_use]
pub fn path_legs(stats: &SessionStats) -> Vec<PathLeg> {
    let carries = |leg: &LegStats| leg.state == LegState::Selected;
    let mut legs: Vec<&LegStats> = stats.legs.iter().take(REPORT_LEGS_MAX).collect();
    legs.sort_by_key(|leg| !carries(leg));
    let path_leg = |leg: &LegStats| PathLeg {
        transport: leg.kind.label().to_owned(),
        carries: carries(leg),
        rtt_us: leg.rtt.map(|rtt| rtt.smoothed_us),
    };
    legs.into_iter().map(path_leg).collect()
}

/// The session layer's round-trip times as messages carry them.
#[must_use]
pub fn rtt_view(rtt: RttFigures) -> RttView {
    RttView {
        smoothed_us: rtt.smoothed_us,
        min_us: rtt.min_us,
        p50_us: rtt.p50_us,
        p99_us: rtt.p99_us,
    }
}

/// As many grants as a `register` has room for. The others reach the broker in the first report.
pub fn register_grants(grants: impl Iterator<Item = SealedGrant>) -> Vec<SealedGrant> {
    let mut room = REGISTER_GRANT_BYTES;
    grants
        .take_while(|grant| {
            let fits = grant.reveal().len() + 3 <= room;
            room = room.saturating_sub(grant.reveal().len() + 3);
            fits
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use crate::wire::{FromAgent, MESSAGE_BYTES_MAX};

    fn figures(number: usize, bytes: u64) -> (SessionReport, SealedGrant) {
        let rtt = RttView { smoothed_us: u32::MAX, min_us: u32::MAX, p50_us: 9, p99_us: u32::MAX };
        let transport = "UDP (Shortpath, managed)".into();
        let leg = PathLeg { transport, carries: false, rtt_us: Some(u32::MAX) };
        let report = SessionReport {
            session: SessionId(format!("{number:012}")),
            grant: None,
            transport: Some("TCP (Reverse-Connect)".into()),
            rtt: Some(rtt),
            client_to_target: bytes,
            target_to_client: u64::MAX,
            channels: u32::MAX,
            resumes: u32::MAX,
            paths: vec![leg; REPORT_LEGS_MAX],
            loss: LossCounts {
                dup_sent: u64::MAX,
                dup_bytes: u64::MAX,
                dup_won: u64::MAX,
                ms_saved: u64::MAX,
                black_holes: u64::MAX,
                datagrams_dropped: u64::MAX,
            },
            jitter_us: Some(u32::MAX),
            loss_ppm: Some(u32::MAX),
            held: Some("u".repeat(63)),
        };
        (report, Secret::new("g".repeat(800)))
    }

    #[test]
    fn a_session_is_reported_when_it_moved_and_proved_once_per_link() {
        let mut reporter = Reporter::default();
        let first = reporter.due([figures(1, 0), figures(2, 0)].into_iter());
        assert!(first[0].len() == 2 && first[0].iter().all(|report| report.grant.is_some()));
        assert!(reporter.due([figures(1, 0), figures(2, 0)].into_iter()).is_empty());
        let moved = reporter.due([figures(1, 5), figures(2, 0)].into_iter());
        assert_eq!(moved, [vec![figures(1, 5).0]]);
        reporter.link_up();
        assert!(reporter.due([figures(1, 5)].into_iter())[0][0].grant.is_some());
    }

    #[test]
    fn a_session_that_ended_is_forgotten() {
        let mut reporter = Reporter::default();
        reporter.due([figures(1, 0)].into_iter());
        reporter.due(std::iter::empty());
        assert!(reporter.told.is_empty());
    }

    #[test]
    fn a_thousand_sessions_fit_their_messages() {
        let batches = Reporter::default().due((0..1000).map(|number| figures(number, u64::MAX)));
        assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), 1000);
        for sessions in batches {
            let text = serde_json::to_string(&FromAgent::Report { sessions }).unwrap();
            assert!(text.len() <= MESSAGE_BYTES_MAX, "{}", text.len());
        }
    }

    #[test]
    fn a_register_never_outgrows_a_message() {
        let grants = register_grants((0..1000).map(|number| figures(number, 0).1));
        assert_eq!(grants.len(), 40);
    }
}
