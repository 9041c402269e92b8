//! Ctrl-C and SIGTERM: the polite ways to end a command.
use switchback_control::{Code, Fault};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for both signals from its creation on.
pub(crate) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    /// Takes over both signals: from now on they no longer end the process by themselves.
    pub(crate) fn listen() -> Result<Self, Fault> {
        let open = |kind| {
            signal(kind)
                .map_err(|error| Code::Internal.because(format!("cannot catch signals: {error}")))
        };
        Ok(Self {
            interrupt: open(SignalKind::interrupt())?,
            terminate: open(SignalKind::terminate())?,
        })
    }

    /// Waits for either. Safe to drop and call again.
    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
