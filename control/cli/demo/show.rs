//! One performance of the demo, from the first request to the summary.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;
use switchback_control::{Code, Fault};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::DemoArgs;
use super::board::{Board, Way};
use super::probe::{self, Findings};
use super::scene::Scene;
use super::stage::Stage;
use super::summary::{Gateway, Hold, SessionFacts, Summary};
use super::{traffic, view};
use crate::output;

/// Share of the time in which only small requests run, so that their latency is known without bulk beside it.
const QUIET_SHARE: f64 = 0.2;
/// Share of the time that the bulk transfers run before broker and gateway are restarted; as long again follows.
const BULK_SHARE: f64 = 0.4;
/// How long the last transfers may take after the time is over: the resume window.
const LAST_PATIENCE: Duration = Duration::from_secs(60);

/// What is to be shown, and what came of it so far.
pub(crate) struct Show {
    planned: Duration,
    hold: bool,
    json: bool,
    target: String,
    board: Arc<Board>,
}

/// What the bulk transfers moved: for how long, and bytes up and down.
type Moved = (Duration, [u64; 2]);

impl Show {
    /// A show with these arguments and this target.
    pub(crate) fn new(args: &DemoArgs, json: bool, target: String) -> Self {
        let planned = Duration::from_secs(args.seconds.into());
        Self { planned, hold: args.hold, json, target, board: Arc::default() }
    }

    /// Pushes the traffic and tells what was found. `own` is the address of the demo's own target.
    ///
    /// # Errors
    /// [`Code::CheckFailed`] if a byte was lost or changed, or a connection broke.
    pub(crate) async fn run(self, stage: &mut Stage, own: Option<SocketAddr>) -> Result<(), Fault> {
        match own {
            Some(direct) => {
                let moved = self.push_traffic(stage, direct).await?;
                let (gateway, hold) = (gateway(stage), self.hold(stage));
                let summary = Summary::of(&self.board, moved, gateway, facts(stage).await, hold);
                self.tell(&summary, summary.in_words(), summary.hold.as_ref())?;
                verdict(summary.ok, summary.checks.first_trouble.as_deref())
            }
            None => {
                let manner = self.visit(stage).await?;
                let (gateway, hold) = (gateway(stage), self.hold(stage));
                let session = facts(stage).await;
                let findings =
                    Findings::of(&self.board, self.target.clone(), manner, gateway, session, hold);
                self.tell(&findings, findings.in_words(), findings.hold.as_ref())?;
                verdict(findings.ok, findings.connections.first_trouble.as_deref())
            }
        }
    }

    /// Small requests alone, then bulk beside them, and in the middle of that the restart.
    async fn push_traffic(&self, stage: &mut Stage, direct: SocketAddr) -> Result<Moved, Fault> {
        let board = &self.board;
        let digests = traffic::expected_digests().await?;
        let (busy, stop, last) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let mut requests = JoinSet::new();
        for (way, address) in [(Way::Direct, direct), (Way::Through, stage.forward)] {
            let (busy, stop) = (busy.clone(), stop.clone());
            requests.spawn(traffic::request_stream(way, address, board.clone(), busy, stop));
        }
        let mut scene = self.scene(stage, "transfers checked by SHA-256");
        scene.play("small requests only", sleep(self.planned.mul_f64(QUIET_SHARE))).await;
        busy.cancel();
        let begin = Instant::now();
        let mut bulk = JoinSet::new();
        traffic::start_bulk(&mut bulk, stage.forward, &digests, board, &last);
        let bulk_part = self.planned.mul_f64(BULK_SHARE);
        scene.play("small requests and bulk", sleep(bulk_part)).await;
        scene.play("broker and gateway restart", stage.restart(board)).await?;
        scene.play("after the restart", sleep(bulk_part)).await;
        scene.play("waiting for the session", self.recovered()).await;
        last.cancel();
        let ended = scene.play("last transfers", timeout(LAST_PATIENCE, bulk.join_all())).await;
        let time = begin.elapsed();
        if ended.is_err() {
            board.broke("transfer", &"did not end in time");
        }
        stop.cancel();
        requests.join_all().await;
        Ok((time, [&board.up, &board.down].map(|bytes| bytes.load(Ordering::Relaxed))))
    }

    /// Requests flow again, or never will.
    async fn recovered(&self) {
        while self.board.restart().is_going_on() && self.board.checks().broken == 0 {
            sleep(view::REDRAW).await;
        }
    }

    /// Measures a target of the user's own.
    async fn visit(&self, stage: &Stage) -> Result<probe::Manner, Fault> {
        let manner = probe::recognise(stage.forward).await.map_err(|trouble| {
            let text = format!("cannot reach {} through the gateway: {trouble}", self.target);
            Code::TargetUnreachable.because(text)
        })?;
        let stop = CancellationToken::new();
        let (target, board) = (self.target.clone(), self.board.clone());
        let mut measuring = JoinSet::new();
        measuring.spawn(probe::measure(manner.clone(), target, stage.forward, board, stop.clone()));
        let mut scene = self.scene(stage, "connections answered");
        scene.play("visiting your target", sleep(self.planned)).await;
        stop.cancel();
        scene.play("last visit", measuring.join_all()).await;
        Ok(manner)
    }

    fn scene(&self, stage: &Stage, counted: &'static str) -> Scene {
        Scene::new(stage, self.board.clone(), self.planned, counted, self.json)
    }

    fn hold(&self, stage: &Stage) -> Option<Hold> {
        self.hold.then(|| Hold { listen: stage.forward, login: stage.login.clone() })
    }

    fn tell<T: Serialize>(
        &self,
        found: &T,
        words: String,
        hold: Option<&Hold>,
    ) -> Result<(), Fault> {
        if self.json {
            return output::json(found);
        }
        output::line(&format!("\n{words}"))?;
        hold.map_or(Ok(()), |hold| output::line(&format!("\n{}", hold.in_words())))
    }
}

fn gateway(stage: &Stage) -> Gateway {
    let (io, io_reason) = stage.io.clone();
    Gateway { address: stage.gateway(), io, io_reason }
}

/// The session as the broker sees it; nothing if it does not answer.
async fn facts(stage: &Stage) -> SessionFacts {
    stage.session().await.map(|view| SessionFacts::from(&view)).unwrap_or_default()
}

fn verdict(ok: bool, trouble: Option<&str>) -> Result<(), Fault> {
    if ok {
        return Ok(());
    }
    Err(Code::CheckFailed
        .because(trouble.unwrap_or("too little was transferred to check anything")))
}
