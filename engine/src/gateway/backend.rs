//! Which readiness source is used, and why.
use crate::{IoChoice, StartError};

/// Where readiness comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// io_uring: tokio-uring at the desk, one ring per worker.
    Uring,
    /// epoll: tokio at the desk, one epoll instance per worker.
    Epoll,
}

/// The readiness source in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Which one.
    pub kind: BackendKind,
    /// Why this one, in words for a log line.
    pub reason: String,
}

impl BackendKind {
    /// Lower-case name, as in metrics, logs and flags.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

impl Backend {
    /// Chooses, given what `probe` finds out about io_uring.
    pub(crate) fn choose(
        choice: IoChoice,
        probe: impl FnOnce() -> Result<(), String>,
    ) -> Result<Self, StartError> {
        let (kind, reason) = match choice {
            IoChoice::Epoll => (BackendKind::Epoll, "asked for".into()),
            IoChoice::Uring => {
                probe().map_err(StartError::UringUnavailable)?;
                (BackendKind::Uring, "asked for".into())
            }
            IoChoice::Auto => match probe() {
                Ok(()) => (BackendKind::Uring, "the kernel has all that is needed".into()),
                Err(reason) => (BackendKind::Epoll, reason),
            },
        };
        Ok(Self { kind, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Result<(), String> {
        Err("io_uring: EPERM".into())
    }

    #[test]
    fn auto_falls_back_and_says_why() {
        let backend = Backend::choose(IoChoice::Auto, refused).unwrap();
        assert_eq!(
            (backend.kind, backend.reason.as_str()),
            (BackendKind::Epoll, "io_uring: EPERM")
        );
        assert_eq!(Backend::choose(IoChoice::Auto, || Ok(())).unwrap().kind, BackendKind::Uring);
    }

    #[test]
    fn uring_asked_for_and_missing_is_an_error() {
        let error = Backend::choose(IoChoice::Uring, refused).unwrap_err();
        assert!(matches!(error, StartError::UringUnavailable(reason) if reason.contains("EPERM")));
    }

    #[test]
    fn epoll_asked_for_does_not_probe() {
        let backend = Backend::choose(IoChoice::Epoll, || panic!("probed")).unwrap();
        assert_eq!(backend.kind, BackendKind::Epoll);
    }
}
