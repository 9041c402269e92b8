//! Waiting for a port that its last owner has not let go of yet.
use std::io;
use std::time::{Duration, Instant};

/// Tear-down of a killed ring took well under a second here; 2 s are noticed by nobody who meant another port.
const RETRY_FOR: Duration = Duration::from_secs(2);
const RETRY_EVERY: Duration = Duration::from_millis(50);

/// What `bind` makes, tried again for 2 seconds while the port is in use: that of an io_uring process that was killed stays
/// bound until the kernel has torn down its ring. Blocks that long.
pub(crate) fn once_free<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let give_up = Instant::now() + RETRY_FOR;
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < give_up => {
                std::thread::sleep(RETRY_EVERY);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener, UdpSocket};

    use crate::{bind_listeners, bind_udp};

    /// Binds the address of `owner`, who lets go of it meanwhile.
    fn bound_after<S: Send + 'static, T>(owner: S, bind: impl FnOnce() -> io::Result<T>) -> bool {
        let leaves = std::thread::spawn(move || {
            std::thread::sleep(RETRY_EVERY * 3);
            drop(owner);
        });
        let bound = bind();
        leaves.join().unwrap();
        bound.is_ok()
    }

    #[test]
    fn a_port_that_is_let_go_of_within_two_seconds_is_had() {
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let owner = TcpListener::bind(any).unwrap();
        let address = owner.local_addr().unwrap();
        assert!(bound_after(owner, || bind_listeners(address, 2)), "TCP");
        let owner = UdpSocket::bind(any).unwrap();
        let address = owner.local_addr().unwrap();
        assert!(bound_after(owner, || bind_udp(address, 2)), "UDP");
    }

    #[test]
    fn a_port_that_stays_in_use_and_other_errors_are_told() {
        let mut tries = 0;
        let mut fails_with = |kind: io::ErrorKind| {
            tries = 0;
            let result: io::Result<()> = once_free(|| {
                tries += 1;
                Err(kind.into())
            });
            (result.unwrap_err().kind(), tries)
        };
        assert_eq!(
            fails_with(io::ErrorKind::PermissionDenied),
            (io::ErrorKind::PermissionDenied, 1)
        );
        let (kind, tries) = fails_with(io::ErrorKind::AddrInUse);
        assert!(kind == io::ErrorKind::AddrInUse && tries > 1, "{tries} tries");
    }
}
