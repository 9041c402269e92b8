//! What the demo found, for people and programs.
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use switchback_control::api::{SessionRtt, SessionView};
use switchback_control::secret::Secret;

use super::board::{Board, Checks, Latency, Load, Way};
use super::traffic::TRANSFER_BYTES;
use crate::output::human;

/// Outcome of a run against the own target.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    /// Whether every check held.
    pub(crate) ok: bool,
    /// The gateway.
    pub(crate) gateway: Gateway,
    /// The session at the end.
    pub(crate) session: SessionFacts,
    /// Bulk transfers.
    pub(crate) bulk: Bulk,
    /// Small requests.
    pub(crate) requests: RequestFacts,
    /// The restart of broker and gateway.
    pub(crate) restart: Restart,
    /// Contents compared.
    pub(crate) checks: Checks,
    /// What makes the figures worse than they could be.
    pub(crate) warnings: Vec<&'static str>,
    /// With `--hold`: what still runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hold: Option<Hold>,
}

/// Kind of I/O that the gateway uses.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) io: String,
    pub(crate) io_reason: String,
}

/// The session at the end of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct SessionFacts {
    pub(crate) id: Option<String>,
    pub(crate) transport: Option<String>,
    pub(crate) resumes: u32,
    pub(crate) rtt: SessionRtt,
}

/// Bulk transfers.
#[derive(Debug, Serialize)]
pub(crate) struct Bulk {
    pub(crate) seconds: f64,
    pub(crate) up_bytes: u64,
    pub(crate) down_bytes: u64,
    pub(crate) up_bytes_per_second: f64,
    pub(crate) down_bytes_per_second: f64,
    pub(crate) transfer_bytes: u64,
}

/// Small requests: straight and through the gateway, without and with bulk beside them.
#[derive(Debug, Serialize)]
pub(crate) struct RequestFacts {
    pub(crate) quiet_direct: Latency,
    pub(crate) quiet_through: Latency,
    pub(crate) busy_direct: Latency,
    pub(crate) busy_through: Latency,
}

/// The restart of broker and gateway, as the application saw it.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Restart {
    /// How long nothing listened.
    pub(crate) outage_ms: Option<u64>,
    /// The longest that a request had to wait.
    pub(crate) pause_ms: Option<u64>,
}

/// What still runs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Hold {
    pub(crate) listen: SocketAddr,
    pub(crate) login: Secret,
}

impl From<&SessionView> for SessionFacts {
    fn from(view: &SessionView) -> Self {
        let (id, transport) = (Some(view.id.0.clone()), view.transport.clone());
        Self { id, transport, resumes: view.resumes, rtt: view.rtt }
    }
}

impl Summary {
    /// Sums a board up; bulk transfers ran for `bulk_time`.
    pub(crate) fn of(
        board: &Board,
        bulk: (Duration, [u64; 2]),
        gateway: Gateway,
        session: SessionFacts,
        hold: Option<Hold>,
    ) -> Self {
        let checks = board.checks();
        let restart = Restart::of(board);
        let ok =
            checks.wrong + checks.broken == 0 && checks.right > 0 && restart.pause_ms.is_some();
        let latency = |way, load| board.latency(way, load);
        Self {
            ok,
            gateway,
            session,
            bulk: Bulk::of(bulk),
            requests: RequestFacts {
                quiet_direct: latency(Way::Direct, Load::Quiet),
                quiet_through: latency(Way::Through, Load::Quiet),
                busy_direct: latency(Way::Direct, Load::Busy),
                busy_through: latency(Way::Through, Load::Busy),
            },
            restart,
            checks,
            warnings: warnings(),
            hold,
        }
    }

    /// For people.
    pub(crate) fn in_words(&self) -> String {
        let Self { gateway, session, bulk, requests, restart, checks, .. } = self;
        let compared = checks.right + checks.wrong + checks.broken;
        let ms = |value: Option<u64>| {
            value.map_or_else(|| human::UNKNOWN.into(), |ms| human::micros(ms * 1000))
        };
        let mut rows = vec![
            ("gateway", format!("{} with {}: {}", gateway.address, gateway.io, gateway.io_reason)),
            ("transport", session.transport.clone().unwrap_or_else(|| human::UNKNOWN.into())),
            ("round trip", rtt_in_words(&session.rtt)),
            ("down", moved(bulk.down_bytes, bulk.down_bytes_per_second)),
            ("up", moved(bulk.up_bytes, bulk.up_bytes_per_second)),
            ("requests, quiet", pair(&requests.quiet_through, &requests.quiet_direct)),
            ("requests, beside bulk", pair(&requests.busy_through, &requests.busy_direct)),
            (
                "restart",
                format!(
                    "broker and gateway away for {}; the application saw a pause of {}; {} resumed",
                    ms(restart.outage_ms),
                    ms(restart.pause_ms),
                    if session.resumes == 1 {
                        "leg 1 time".into()
                    } else {
                        format!("leg {} times", session.resumes)
                    },
                ),
            ),
            (
                "hashes",
                format!(
                    "{} of {compared} transfers of {} right",
                    checks.right,
                    human::bytes(bulk.transfer_bytes)
                ),
            ),
        ];
        rows.extend(checks.first_trouble.iter().map(|trouble| ("trouble", trouble.clone())));
        rows.extend(self.warnings.iter().map(|warning| ("note", (*warning).to_owned())));
        let verdict =
            if self.ok { "No byte was lost, doubled or changed." } else { "NOT EVERYTHING HELD." };
        table(&rows) + "\n\n" + verdict
    }
}

impl Bulk {
    fn of((time, [up, down]): (Duration, [u64; 2])) -> Self {
        let seconds = time.as_secs_f64();
        let rate = |bytes: u64| if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 };
        Self {
            seconds,
            up_bytes: up,
            down_bytes: down,
            up_bytes_per_second: rate(up),
            down_bytes_per_second: rate(down),
            transfer_bytes: TRANSFER_BYTES,
        }
    }
}

impl Restart {
    fn of(board: &Board) -> Self {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let watch = board.restart();
        Self { outage_ms: watch.outage().map(ms), pause_ms: watch.pause().map(ms) }
    }
}

impl Hold {
    /// For people.
    pub(crate) fn in_words(&self) -> String {
        format!(
            "Everything keeps running until Ctrl-C. The service is at\n  {}\nIn another terminal:\n  \
             export SWITCHBACK_LOGIN={}\n  switchback sessions",
            self.listen,
            self.login.reveal()
        )
    }
}

/// What makes figures of this run worse than they could be.
pub(crate) fn warnings() -> Vec<&'static str> {
    let mut warnings = vec![
        "every part, the making and the hashing of the data included, shares this machine's cores",
    ];
    if cfg!(debug_assertions) {
        warnings.push("this is a debug build; a release build is several times faster");
    }
    warnings
}

/// Smoothed round trips.
pub(crate) fn rtt_in_words(rtt: &SessionRtt) -> String {
    format!(
        "{} end to end, {} client leg, {} agent leg",
        human::rtt(rtt.end_to_end),
        human::rtt(rtt.client_leg),
        human::rtt(rtt.agent_leg)
    )
}

/// Two columns.
pub(crate) fn table(rows: &[(&str, String)]) -> String {
    let lines: Vec<_> = rows.iter().map(|(name, value)| format!("  {name:<24} {value}")).collect();
    lines.join("\n")
}

/// Latency through the gateway, beside the direct one.
pub(crate) fn pair(through: &Latency, direct: &Latency) -> String {
    let us = human::micros;
    format!(
        "p50 {} p99 {} through the gateway ({}); p50 {} p99 {} straight ({})",
        us(through.p50_us),
        us(through.p99_us),
        through.count,
        us(direct.p50_us),
        us(direct.p99_us),
        direct.count
    )
}

fn moved(bytes: u64, per_second: f64) -> String {
    format!("{} at {}, the pause included", human::bytes(bytes), human::rate(per_second))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::demo::board::Request;

    fn summary(board: &Board) -> Summary {
        let gateway = Gateway {
            address: "127.0.0.1:1".parse().unwrap(),
            io: "epoll".into(),
            io_reason: "asked for".into(),
        };
        Summary::of(
            board,
            (Duration::from_secs(2), [1 << 20, 4 << 20]),
            gateway,
            SessionFacts::default(),
            None,
        )
    }

    fn restarted(board: &Board) {
        let start = Instant::now();
        board.going_down(start);
        board.back_up(start + Duration::from_millis(300));
        let sent = start + Duration::from_millis(400);
        let request = Request { sent, done: sent + Duration::from_millis(50), pace: None };
        board.answered(Way::Through, Load::Busy, request);
    }

    #[test]
    fn all_is_well_only_if_transfers_were_checked_and_the_restart_was_survived() {
        let board = Board::default();
        assert!(!summary(&board).ok, "nothing was checked");
        board.transferred(true);
        assert!(!summary(&board).ok, "the restart was not survived");
        restarted(&board);
        let well = summary(&board);
        assert!(well.ok && well.in_words().ends_with("No byte was lost, doubled or changed."));
        assert_eq!((well.restart.outage_ms, well.restart.pause_ms), (Some(300), Some(50)));
        board.transferred(false);
        let ill = summary(&board);
        assert!(!ill.ok && ill.in_words().contains("1 of 2 transfers"));
    }

    #[test]
    fn rates_are_bytes_over_the_time_of_the_transfers() {
        let bulk = summary(&Board::default()).bulk;
        assert!((bulk.down_bytes_per_second - 2_097_152.0).abs() < 1.0);
    }
}
