//! What ends say about UDP, brought within bounds before anyone believes or keeps it.
use crate::broker::app::App;
use crate::broker::candidates::Judge;
use crate::broker::door::Visitor;
use crate::broker::limits::is_label;
use crate::broker::orchestrator::{Input, LinkId};
use crate::code::Code;
use crate::wire::{
    CANDIDATES_MAX, Candidate, PathMove, PathReport, REPORT_IGNORED_MAX, REPORT_LEGS_MAX,
    REPORT_MOVES_MAX, REPORT_PAIRS_MAX, REPORT_REASONS_MAX,
};

/// Judges candidates of the end behind a link. One that came by a path we do not know the end of is far away, and its
/// gateway has no address that it could be sent to.
fn judge(visitor: &Visitor) -> Judge {
    let gateway = visitor.local.unwrap_or_else(|| ([0, 0, 0, 0], 0).into());
    Judge::new(visitor.address, gateway)
}

/// The candidates of a link's end that may be passed on; the others are counted, and remembered for `explain`.
pub(super) fn admit(
    app: &App,
    link: LinkId,
    visitor: &Visitor,
    candidates: Vec<Candidate>,
) -> Vec<Candidate> {
    let (admitted, refused) = judge(visitor).admit(candidates);
    if refused > 0 {
        let code = Code::CandidateRefused;
        tracing::debug!(link = link.0, peer = %visitor.address, refused, %code, "candidates refused");
        app.counters.faults.add_many(code, refused as u64);
        app.hub.apply(Input::CandidatesRefused { link });
    }
    admitted
}

/// A move whose texts are fit for logs and lists.
pub(super) fn is_plain(moved: &PathMove) -> bool {
    is_label(&moved.to) && is_label(&moved.cause) && moved.from.as_deref().is_none_or(is_label)
}

/// Cuts a report to what is kept of one.
pub(super) fn bounded(mut report: PathReport) -> PathReport {
    report.legs.truncate(REPORT_LEGS_MAX);
    report.legs.retain(|leg| is_label(&leg.transport));
    report.candidates.truncate(CANDIDATES_MAX);
    report.candidates.retain(|candidate| is_label(candidate));
    report.pairs.truncate(REPORT_PAIRS_MAX);
    report.pairs.retain(|pair| {
        [&pair.transport, &pair.local, &pair.remote, &pair.state].into_iter().all(|it| is_label(it))
    });
    report.reasons.truncate(REPORT_REASONS_MAX);
    report.reasons.retain(|reason| is_label(reason));
    report.ignored.retain(|name, _| is_label(name));
    while report.ignored.len() > REPORT_IGNORED_MAX {
        report.ignored.pop_last();
    }
    let surplus = report.moves.len().saturating_sub(REPORT_MOVES_MAX);
    report.moves.drain(..surplus);
    report.moves.retain(is_plain);
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{PathLeg, PathPair};

    fn pair(state: &str) -> PathPair {
        let text = || "host 192.0.2.1:1".to_owned();
        let (transport, local, remote) = ("UDP (Shortpath)".into(), text(), text());
        PathPair { transport, local, remote, state: state.into(), rtt_us: None }
    }

    fn moved(cause: &str) -> PathMove {
        let (to, cause) = ("UDP (Shortpath)".into(), cause.into());
        PathMove { at_ms: 0, from: None, to, cause, stall_us: 0, rtt_us: None }
    }

    #[test]
    fn a_report_is_cut_to_what_is_kept_and_its_last_moves_stay() {
        let leg = PathLeg { transport: "x".repeat(65), carries: true, rtt_us: None };
        let mut moves = vec![moved("first"); REPORT_MOVES_MAX];
        moves.push(moved("last"));
        let report = PathReport {
            legs: vec![leg],
            candidates: vec!["host 192.0.2.1:1".into(); CANDIDATES_MAX + 1],
            pairs: vec![pair("failed"); REPORT_PAIRS_MAX + 5],
            reasons: vec!["no\u{1b}[31m".into(), "throttled".into()],
            moves,
            ignored: (0..50).map(|number| (format!("check_{number}"), 1)).collect(),
        };
        let kept = bounded(report);
        assert_eq!((kept.legs.len(), kept.pairs.len()), (0, REPORT_PAIRS_MAX));
        assert_eq!(kept.candidates.len(), CANDIDATES_MAX);
        assert_eq!((kept.reasons.len(), kept.moves.len()), (1, REPORT_MOVES_MAX));
        assert_eq!(kept.ignored.len(), REPORT_IGNORED_MAX);
        assert_eq!(kept.moves.last(), Some(&moved("last")));
        assert!(!is_plain(&moved("\n")) && is_plain(&moved("better")));
    }
}
