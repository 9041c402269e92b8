//! Measuring a session: what is sent into it comes back from the agent, by whatever carries the session just then.
use bytes::{Bytes, BytesMut};
use switchback_shortpath::{ChannelReader, ChannelWriter};
use tokio::sync::mpsc;

use super::session::{ClientSession, reset_fault};
use crate::code::Fault;

/// Smallest probe in bytes: its number.
pub const PROBE_BYTES_MIN: usize = 8;
/// Largest: one frame of the session layer.
pub const PROBE_BYTES_MAX: usize = 16 * 1024;

/// The sending half of an echo.
#[derive(Debug)]
pub struct EchoSender(ChannelWriter);

impl EchoSender {
    /// Sends probe `number` with filler up to `size` bytes, which must be the same for all and within
    /// [`PROBE_BYTES_MIN`] and [`PROBE_BYTES_MAX`].
    ///
    /// # Errors
    /// Why the channel ended.
    pub async fn send(&mut self, number: u64, size: usize) -> Result<(), Fault> {
        let mut probe = BytesMut::zeroed(size.clamp(PROBE_BYTES_MIN, PROBE_BYTES_MAX));
        probe[..PROBE_BYTES_MIN].copy_from_slice(&number.to_be_bytes());
        self.0.write(probe.freeze()).await.map_err(reset_fault)
    }
}

/// Opens an echo in a session made for it, see [`super::Client::open_echo`]. The numbers of the probes of `size` bytes that
/// came back arrive in order; the last thing is why the echo ended.
///
/// # Errors
/// Why there is no channel.
pub fn echo(
    session: &ClientSession,
    size: usize,
) -> Result<(EchoSender, mpsc::Receiver<Result<u64, Fault>>), Fault> {
    let (reader, writer) = session.open_channel()?.split();
    let (sender, replies) = mpsc::channel(REPLIES_MAX);
    tokio::spawn(hear(reader, size.clamp(PROBE_BYTES_MIN, PROBE_BYTES_MAX), sender));
    Ok((EchoSender(writer), replies))
}

/// Replies that wait to be looked at: after a stall they come all at once.
const REPLIES_MAX: usize = 1024;

async fn hear(mut reader: ChannelReader, size: usize, replies: mpsc::Sender<Result<u64, Fault>>) {
    let mut pending = Pending::default();
    loop {
        let read = reader.read().await;
        let numbers = match read {
            Ok(Some(bytes)) => pending.take(&bytes, size),
            Ok(None) => return,
            Err(error) => {
                // Nobody may be listening any more.
                let _ = replies.send(Err(reset_fault(error))).await;
                return;
            }
        };
        for number in numbers {
            if replies.send(Ok(number)).await.is_err() {
                return;
            }
        }
    }
}

/// A byte stream cut into probes again.
#[derive(Debug, Default)]
struct Pending(BytesMut);

impl Pending {
    /// The numbers of the probes that are complete with these bytes.
    fn take(&mut self, bytes: &Bytes, size: usize) -> Vec<u64> {
        self.0.extend_from_slice(bytes);
        let mut numbers = Vec::new();
        while self.0.len() >= size {
            let probe = self.0.split_to(size);
            let number = probe.first_chunk().map(|number| u64::from_be_bytes(*number));
            numbers.extend(number);
        }
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_found_however_the_stream_is_cut() {
        let stream: Vec<u8> = (1..=3u64)
            .flat_map(|number| {
                let mut probe = vec![0xee; 20];
                probe[..8].copy_from_slice(&number.to_be_bytes());
                probe
            })
            .collect();
        for cut in 1..=stream.len() {
            let mut pending = Pending::default();
            let pieces = stream.chunks(cut);
            let numbers: Vec<u64> =
                pieces.flat_map(|piece| pending.take(&Bytes::copy_from_slice(piece), 20)).collect();
            assert_eq!(numbers, [1, 2, 3], "cut {cut}");
        }
    }
}
