//! One end of a session: what it still has to write, and what it has read.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Context, Result, bail};
use rustix::event::epoll::EventFlags;

use super::Task;
use crate::peers::refusal;

/// A socket in the middle of its session.
pub(super) struct End {
    pub(super) socket: TcpStream,
    /// Nanoseconds since the start of the run.
    pub(super) begun_ns: u64,
    /// What epoll looks for.
    pub(super) watched: EventFlags,
    /// Payload read.
    pub(super) received: u64,
    role: Role,
    /// Written before the payload.
    hello: Vec<u8>,
    hello_written: usize,
    /// Payload still to write.
    to_write: u64,
    /// The last bytes are written and the stream is shut, or is not to be.
    shut: bool,
    /// The first bytes read, while they may be a refusal.
    first: Vec<u8>,
}

enum Role {
    /// Sends `bytes`; with `echo` expects them back; then ends unless it holds.
    Near { bytes: u64, echo: bool, hold: bool },
    /// First reads what must be the other end's hello; then sends back or discards.
    Far { expected: Vec<u8>, matched: usize, echo: bool },
}

/// What became of one [`End::advance`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The first byte came back.
    pub(super) answered: bool,
    /// The last byte came back.
    pub(super) complete: bool,
    /// The end of the stream was read: nothing more will come.
    pub(super) ended: bool,
    /// When it ended, all had been sent and all had come back.
    pub(super) whole: bool,
}

/// What is sent: the bytes do not matter, and what was read (tickets) must not be.
static PAYLOAD: [u8; 64 << 10] = [0; 64 << 10];

/// Longest refusal: a TLS alert record.
const REFUSAL_BYTES: usize = 7;

impl End {
    /// A client's end that begins now.
    pub(super) fn near(socket: TcpStream, hello: Vec<u8>, task: &Task, begun_ns: u64) -> End {
        let Task { bytes, echo, hold, .. } = *task;
        let role = Role::Near { bytes, echo, hold };
        End { begun_ns, to_write: bytes, hello, ..End::new(socket, role) }
    }

    /// An agent's leg: shows `hello`, and reads `expected` before the payload.
    pub(super) fn agent(socket: TcpStream, hello: Vec<u8>, expected: Vec<u8>, echo: bool) -> End {
        End { hello, ..End::new(socket, Role::Far { expected, matched: 0, echo }) }
    }

    /// A service's end.
    pub(super) fn accepted(socket: TcpStream, echo: bool) -> End {
        End::new(socket, Role::Far { expected: Vec::new(), matched: 0, echo })
    }

    fn new(socket: TcpStream, role: Role) -> End {
        End {
            socket,
            begun_ns: 0,
            watched: EventFlags::IN,
            received: 0,
            role,
            hello: Vec::new(),
            hello_written: 0,
            to_write: 0,
            shut: false,
            first: Vec::new(),
        }
    }

    pub(super) fn is_near(&self) -> bool {
        matches!(self.role, Role::Near { .. })
    }

    /// Looks for room to write only while there is something to write.
    pub(super) fn interest(&self) -> EventFlags {
        if self.has_to_write() { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN }
    }

    /// Writes what can be written, reads once, and ends the stream when its time has come.
    ///
    /// # Errors
    /// The connection fails, or another hello came out.
    pub(super) fn advance(&mut self, scratch: &mut [u8]) -> Result<Progress> {
        self.write()?;
        let mut progress = self.read(scratch)?;
        self.write()?;
        self.shut_when_done()?;
        progress.whole = self.is_whole();
        Ok(progress)
    }

    /// ` (NAME of the refusal)` if that is what was read instead of an answer.
    pub(super) fn refusal(&self) -> String {
        refusal(&self.first).map(|name| format!(" ({name})")).unwrap_or_default()
    }

    fn has_to_write(&self) -> bool {
        self.hello_written < self.hello.len() || self.to_write > 0
    }

    fn is_whole(&self) -> bool {
        match self.role {
            Role::Near { bytes, echo, .. } => {
                self.shut && self.received == if echo { bytes } else { 0 }
            }
            Role::Far { .. } => true,
        }
    }

    fn write(&mut self) -> Result<()> {
        while self.has_to_write() {
            let hello = &self.hello[self.hello_written..];
            let payload = usize::try_from(self.to_write).unwrap_or(usize::MAX).min(PAYLOAD.len());
            let bytes = if hello.is_empty() { &PAYLOAD[..payload] } else { hello };
            match (&self.socket).write(bytes) {
                Ok(written) if hello.is_empty() => self.to_write -= written as u64,
                Ok(written) => self.hello_written += written,
                Err(error) if is_transient(&error) => return Ok(()),
                Err(error) => return Err(error).context("sending on a new session"),
            }
        }
        Ok(())
    }

    fn read(&mut self, scratch: &mut [u8]) -> Result<Progress> {
        let bytes = match (&self.socket).read(scratch) {
            Ok(0) => return Ok(Progress { ended: true, ..Progress::default() }),
            Ok(bytes) => bytes,
            Err(error) if is_transient(&error) => return Ok(Progress::default()),
            // Ended, if rudely, after all had been exchanged.
            Err(error) if error.kind() == ErrorKind::ConnectionReset && self.may_be_reset() => {
                return Ok(Progress { ended: true, ..Progress::default() });
            }
            Err(error) => {
                return Err(error).with_context(|| format!("on a session{}", self.refusal()));
            }
        };
        self.keep_first(&scratch[..bytes]);
        self.take(&scratch[..bytes])
    }

    fn take(&mut self, bytes: &[u8]) -> Result<Progress> {
        let before = self.received;
        match &mut self.role {
            Role::Near { bytes: wanted, echo: true, .. } => {
                self.received += bytes.len() as u64;
                let complete = before < *wanted && self.received >= *wanted;
                Ok(Progress { answered: before == 0, complete, ..Progress::default() })
            }
            Role::Near { .. } => {
                self.received += bytes.len() as u64;
                Ok(Progress::default())
            }
            Role::Far { expected, matched, echo } => {
                let hello = bytes.len().min(expected.len() - *matched);
                if bytes[..hello] != expected[*matched..*matched + hello] {
                    bail!("another hello came out of the gateway{}", self.refusal());
                }
                *matched += hello;
                let payload = (bytes.len() - hello) as u64;
                self.received += payload;
                self.to_write += if *echo { payload } else { 0 };
                Ok(Progress::default())
            }
        }
    }

    fn keep_first(&mut self, bytes: &[u8]) {
        // A byte more than a refusal, so that what goes on is not taken for one.
        let room = (REFUSAL_BYTES + 1).saturating_sub(self.first.len());
        self.first.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn may_be_reset(&self) -> bool {
        match self.role {
            Role::Near { .. } => self.is_whole(),
            Role::Far { .. } => self.received > 0 && !self.has_to_write(),
        }
    }

    /// The near end ends the stream after its last byte, or after the last echoed one.
    fn shut_when_done(&mut self) -> Result<()> {
        let Role::Near { bytes, echo, hold } = self.role else { return Ok(()) };
        let done = !self.has_to_write() && (!echo || self.received >= bytes);
        if !self.shut && done && !hold {
            self.shut = true;
            match self.socket.shutdown(Shutdown::Write) {
                // Gone already: what the read says next counts.
                Err(error) if error.kind() == ErrorKind::NotConnected => {}
                shut => shut.context("ending a session")?,
            }
        }
        Ok(())
    }
}

pub(super) fn is_transient(error: &io::Error) -> bool {
    // Not connected yet: a socket that is still connecting.
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
