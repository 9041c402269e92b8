//! A part of the demo: something is done while the view shows it.
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchback_control::api::SessionView;
use tokio::sync::watch;
use tokio::time::interval;

use super::board::Board;
use super::stage::Stage;
use super::view::{Caption, REDRAW, View};

/// The view, and what it shows besides the board.
pub(crate) struct Scene {
    view: View,
    sessions: watch::Receiver<Vec<SessionView>>,
    place: String,
    begin: Instant,
    planned: Duration,
    counted: &'static str,
}

impl Scene {
    /// Begins now and is planned to last this long.
    pub(crate) fn new(
        stage: &Stage,
        board: Arc<Board>,
        planned: Duration,
        counted: &'static str,
        silent: bool,
    ) -> Self {
        let (io, _) = &stage.io;
        let place = format!("gateway {} ({io})  local port {}", stage.gateway(), stage.forward);
        let view = View::new(board, silent);
        Self { view, sessions: stage.sessions(), place, begin: Instant::now(), planned, counted }
    }

    /// Shows `phase` until `work` is done.
    pub(crate) async fn play<T>(
        &mut self,
        phase: &'static str,
        work: impl Future<Output = T>,
    ) -> T {
        let mut redraw = interval(REDRAW);
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = redraw.tick() => self.draw(phase),
            }
        }
    }

    fn draw(&mut self, phase: &'static str) {
        let now = Instant::now();
        let caption = Caption {
            elapsed: now - self.begin,
            planned: self.planned,
            phase,
            counted: self.counted,
            place: self.place.clone(),
            sessions: self.sessions.borrow().clone(),
        };
        self.view.draw(caption, now);
    }
}
