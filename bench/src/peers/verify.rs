//! Before a peer is measured: does it deliver the bytes, all of them, both ways, and their end?

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Context, Result, bail, ensure};

use super::Flow;
use super::socket::CONNECT_WITHIN;

/// Bytes each way. Larger than the socket buffers' initial sizes and any relay buffer.
const PATTERN_BYTES: usize = 1 << 20;

/// Sends a pattern through `flow` both ways at once, then half-closes the near end, answers from the
/// far end and half-closes that; compares every byte.
///
/// The ends do not close while both directions are full: HAProxy 2.6 may cut such flows off.
///
/// # Errors
/// A byte that differs, is missing or too many, a lost half-close, or no progress for 5 s.
pub(crate) fn verify(flow: Flow) -> Result<()> {
    let Flow { near, far } = flow;
    for end in [&near, &far] {
        end.set_read_timeout(Some(CONNECT_WITHIN))?;
        end.set_write_timeout(Some(CONNECT_WITHIN))?;
    }
    let (there, back, answer) = (pattern(1), pattern(2), pattern(3));
    all([
        &|| send(&near, &there),
        &|| send(&far, &back),
        &|| receive(&far, &there).context("from near to far"),
        &|| receive(&near, &back).context("from far to near"),
    ])?;
    near.shutdown(Shutdown::Write).context("half-closing")?;
    ended(&far).context("from near to far")?;
    let answering = || {
        send(&far, &answer)?;
        far.shutdown(Shutdown::Write).context("half-closing")
    };
    all([&answering, &|| receive(&near, &answer).context("after the half-close")])?;
    ended(&near).context("from far to near")
}

/// Runs all at once. What did not arrive explains more than what could not be sent, so the last
/// error counts.
fn all<const N: usize>(tasks: [&(dyn Fn() -> Result<()> + Sync); N]) -> Result<()> {
    std::thread::scope(|scope| {
        let mut results = tasks
            .map(|task| scope.spawn(task))
            .map(|task| task.join().unwrap_or_else(|_| bail!("panicked")));
        results.reverse();
        results.into_iter().collect()
    })
}

fn send(mut to: &TcpStream, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes).context("sending the pattern")
}

fn receive(from: &TcpStream, expected: &[u8]) -> Result<()> {
    let mut received = Vec::with_capacity(expected.len());
    from.take(expected.len() as u64).read_to_end(&mut received).context("receiving")?;
    let (got, wanted) = (received.len(), expected.len());
    ensure!(got == wanted, "{got} bytes arrived where {wanted} were sent");
    ensure!(received == expected, "the bytes that arrived are not those that were sent");
    Ok(())
}

fn ended(mut from: &TcpStream) -> Result<()> {
    let bytes = from.read(&mut [0]).context("waiting for the end")?;
    ensure!(bytes == 0, "more bytes arrived than were sent");
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
    fn a_changed_a_missing_and_an_extra_byte_are_found() {
        for (sent, fault) in [("abcx", "not those"), ("abc", "3 bytes arrived where 4")] {
            let Flow { near, far } = Dialer::system_default().direct_flow().unwrap();
            send(&near, sent.as_bytes()).unwrap();
            near.shutdown(Shutdown::Write).unwrap();
            let error = receive(&far, b"abcd").unwrap_err().to_string();
            assert!(error.contains(fault), "{error}");
        }
        let Flow { near, far } = Dialer::system_default().direct_flow().unwrap();
        send(&near, b"abcde").unwrap();
        receive(&far, b"abcd").unwrap();
        assert!(ended(&far).unwrap_err().to_string().contains("more bytes"));
    }
}
