//! How sessions and channels end.

/// CLOSE: the owner is done.
pub const CLOSE_NORMAL: u16 = 0;
/// CLOSE: the peer broke the protocol. Codes from 0xff00 up belong to the session layer, the rest to its owner.
pub const CLOSE_PROTOCOL: u16 = 0xff00;
/// CLOSE: the other end was started anew and knows nothing of what was carried before.
pub const CLOSE_RESTARTED: u16 = 0xff03;
/// RESET: the application dropped the channel before both directions had ended.
pub const RESET_DROPPED: u16 = 0xff01;

/// RESET: the socket behind the channel failed.
pub const RESET_SOCKET: u16 = 0xff02;
/// RESET: the channel is one more than this end holds; one that ends makes room.
pub const RESET_LIMIT: u16 = 0xff04;

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer closed it.
    ByPeer(u16),
    /// This end closed it.
    ByUs(u16),
    /// No leg came within the resume window.
    Lost,
    /// The other end was started anew and knows nothing of what was carried before.
    Restarted,
    /// The peer broke the protocol in this way.
    Protocol(String),
}

/// A peer that does what no correct peer does. The session is over: its state can no longer be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Bytes that are no frame.
    #[error("malformed frame: {0}")]
    Frame(#[from] super::frame::FrameError),
    /// A frame other than CLOSE before HELLO, or a second HELLO.
    #[error("a leg must begin with exactly one HELLO")]
    Hello,
    /// A HELLO of another version.
    #[error("peer speaks version {0}")]
    Version(u16),
    /// A channel the peer may not open or name.
    #[error("no such channel")]
    Channel,
    /// More channels than agreed.
    #[error("too many channels")]
    ChannelLimit,
    /// Bytes beyond the window.
    #[error("window exceeded")]
    Window,
    /// Bytes beyond FIN, or a second FIN elsewhere.
    #[error("final size changed")]
    FinalSize,
    /// Bytes in more separate pieces than kept.
    #[error("too many gaps")]
    Gaps,
    /// An acknowledgement of bytes never sent.
    #[error("acknowledged what was never sent")]
    Ack,
}
