//! Before a peer is measured: does it deliver the bytes, all of them, both ways, and their end?

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Context, Result, ensure};

use super::Flow;
use super::socket::CONNECT_WITHIN;

/// Bytes each way. Larger than the socket buffers' initial sizes and any relay buffer.
const PATTERN_BYTES: usize = 1 << 20;

/// Sends a pattern through `flow` both ways at once, half-closes both, and compares every byte.
///
/// # Errors
/// A byte that differs, is missing or too many, or no progress for 5 s.
pub(crate) fn verify(flow: Flow) -> Result<()> {
    let Flow { near, far } = flow;
    for end in [&near, &far] {
        end.set_read_timeout(Some(CONNECT_WITHIN))?;
        end.set_write_timeout(Some(CONNECT_WITHIN))?;
    }
    let (there, back) = (pattern(1), pattern(2));
    std::thread::scope(|scope| {
        let tasks = [
            scope.spawn(|| send(&near, &there)),
            scope.spawn(|| send(&far, &back)),
            scope.spawn(|| receive(&far, &there).context("from near to far")),
            scope.spawn(|| receive(&near, &back).context("from far to near")),
        ];
        let mut results =
            tasks.map(|task| task.join().unwrap_or_else(|_| anyhow::bail!("panicked")));
        // What did not arrive explains more than what could not be sent.
        results.reverse();
        results.into_iter().collect()
    })
}

fn send(mut to: &TcpStream, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes).context("sending the pattern")?;
    to.shutdown(Shutdown::Write).context("half-closing")
}

fn receive(from: &TcpStream, expected: &[u8]) -> Result<()> {
    let mut received = Vec::with_capacity(expected.len());
    from.take(expected.len() as u64 + 1).read_to_end(&mut received).context("receiving")?;
    let (got, wanted) = (received.len(), expected.len());
    ensure!(got == wanted, "{got} bytes arrived where {wanted} were sent");
    ensure!(received == expected, "the bytes that arrived are not those that were sent");
    Ok(())
}

/// Bytes without a short period (a linear congruential generator, Knuth's constants).
fn pattern(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..PATTERN_BYTES).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::socket::Dialer;

    #[test]
    fn a_direct_flow_passes() {
        verify(Dialer::system_default().direct_flow().unwrap()).unwrap();
    }

    #[test]
    fn a_changed_byte_and_a_missing_byte_are_found() {
        for (sent, fault) in [("abcx", "not those"), ("abc", "3 bytes arrived where 4")] {
            let Flow { near, far } = Dialer::system_default().direct_flow().unwrap();
            send(&near, sent.as_bytes()).unwrap();
            let error = receive(&far, b"abcd").unwrap_err().to_string();
            assert!(error.contains(fault), "{error}");
        }
    }
}
