//! Local connections: how they are accepted, and how one is turned away.
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// Pause after a failed accept: out of descriptors, as a rule, and one must be closed first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The next connection to `listener`. Failures are logged and outlasted.
pub async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a local connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Closes with a reset, so that the application learns that nothing was carried.
pub fn turn_away(stream: &TcpStream) {
    // If the option cannot be set the application sees an end instead of a reset.
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "a local connection could not be reset");
    }
}
