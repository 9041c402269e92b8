//! Socket options of a tuning.
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, SockRef, TcpKeepalive};

use crate::{Tuning, TuningOption};

/// Sets what `tuning` has for `option`, if anything.
///
/// # Errors
/// `setsockopt(2)`.
pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    tuning: &Tuning,
    option: TuningOption,
) -> io::Result<()> {
    let plain = SockRef::from(&socket);
    match option {
        TuningOption::Congestion => {
            tuning.congestion.iter().try_for_each(|name| plain.set_tcp_congestion(name.as_bytes()))
        }
        TuningOption::Dscp => tuning.dscp.map_or(Ok(()), |dscp| set_dscp(&plain, dscp)),
        TuningOption::UserTimeout => {
            let timeout = tuning.user_timeout_ms.map(|ms| Duration::from_millis(ms.into()));
            timeout.map_or(Ok(()), |timeout| plain.set_tcp_user_timeout(Some(timeout)))
        }
        TuningOption::Keepalive => tuning.keepalive.map_or(Ok(()), |keepalive| {
            let keepalive = TcpKeepalive::new()
                .with_time(Duration::from_secs(keepalive.idle_s.into()))
                .with_interval(Duration::from_secs(keepalive.interval_s.into()))
                .with_retries(keepalive.probes.into());
            plain.set_tcp_keepalive(&keepalive)
        }),
        TuningOption::NotsentLowat => {
            tuning.notsent_lowat_bytes.map_or(Ok(()), |bytes| plain.set_tcp_notsent_lowat(bytes))
        }
        TuningOption::MaxPacingRate => {
            tuning.max_pacing_rate_bps.map_or(Ok(()), |bps| set_max_pacing_rate(socket, bps / 8))
        }
        TuningOption::Mss => tuning.mss_bytes.map_or(Ok(()), |mss| plain.set_tcp_mss(mss.into())),
        TuningOption::FastOpen => {
            tuning.fast_open.map_or(Ok(()), |queue| set_fast_open(socket, queue.into()))
        }
    }
}

/// Takes back what another process may have set on a listener that was taken over from it, for options that
/// [`Tuning::base`] leaves open. Options that this kernel or sandbox does not have cannot have been set either.
///
/// # Errors
/// `setsockopt(2)`.
pub(crate) fn clear_option(socket: BorrowedFd<'_>, option: TuningOption) -> io::Result<()> {
    let plain = SockRef::from(&socket);
    let cleared = match option {
        TuningOption::Congestion => set_default_congestion(&plain),
        TuningOption::Dscp => set_dscp(&plain, 0),
        TuningOption::MaxPacingRate => set_max_pacing_rate(socket, u64::MAX),
        TuningOption::Mss => plain.set_tcp_mss(0),
        TuningOption::FastOpen => set_fast_open(socket, 0),
        TuningOption::UserTimeout | TuningOption::Keepalive | TuningOption::NotsentLowat => Ok(()),
    };
    cleared.or_else(|error| match error.raw_os_error() {
        Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::EINVAL) => Ok(()),
        _ => Err(error),
    })
}

/// Only where it is another one: a socket that was given its algorithm no longer follows its route's (`ip route`,
/// `congctl`).
fn set_default_congestion(socket: &SockRef<'_>) -> io::Result<()> {
    let Ok(default) = std::fs::read_to_string(DEFAULT_CONGESTION) else { return Ok(()) };
    let now = socket.tcp_congestion()?;
    let now = now.split(|byte| *byte == 0).next().unwrap_or_default();
    if default.trim().as_bytes() == now {
        return Ok(());
    }
    socket.set_tcp_congestion(default.trim().as_bytes())
}

const DEFAULT_CONGESTION: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// An IPv6 socket may carry IPv4 (RFC 4291 section 2.5.5.2), whose field is another one. Linux keeps the two ECN bits of
/// a TCP socket as they are.
fn set_dscp(socket: &SockRef<'_>, dscp: u8) -> io::Result<()> {
    let field = u32::from(dscp) << 2;
    if socket.domain()? == Domain::IPV6 {
        socket.set_tclass_v6(field)?;
    }
    socket.set_tos_v4(field)
}

/// In bytes per second. Eight bytes long: since Linux 4.20 the kernel then reads an unsigned long where that has 64 bits.
fn set_max_pacing_rate(socket: BorrowedFd<'_>, bytes_per_s: u64) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &bytes_per_s.to_ne_bytes())
}

fn set_fast_open(socket: BorrowedFd<'_>, queue: c_int) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, &queue.to_ne_bytes())
}

/// An option for which socket2 has no setter.
pub(super) fn set(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &[u8],
) -> io::Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: `value` is borrowed for the whole call and `length` bytes long, and the kernel only reads it. The
    // descriptor is open as long as its borrow lives.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;
    use crate::ring::prepare_listener;

    /// Congestion control, DSCP and announced segment size of a connection that `listener` accepts now.
    fn accepted(listener: &TcpListener) -> (Vec<u8>, u32, u32) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (leg, _) = listener.accept().unwrap();
        let leg = SockRef::from(&leg);
        let announced = SockRef::from(&client).tcp_mss().unwrap();
        (leg.tcp_congestion().unwrap(), leg.tos_v4().unwrap(), announced)
    }

    #[test]
    fn options_that_a_socket_does_not_have_need_no_clearing() {
        let (without, _mate) = std::os::unix::net::UnixStream::pair().unwrap();
        for option in TuningOption::ALL {
            clear_option(without.as_fd(), option).unwrap();
        }
        assert!(
            SockRef::from(&without).set_tcp_mss(0).is_err(),
            "a socket that has them all proves nothing"
        );
        let no_socket = std::fs::File::open("/dev/null").unwrap();
        assert!(clear_option(no_socket.as_fd(), TuningOption::Mss).is_err());
    }

    #[test]
    fn a_listener_that_was_taken_over_forgets_what_it_was_told_before() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let before = accepted(&listener);
        let other = if before.0.starts_with(b"reno") { "cubic" } else { "reno" };
        let told = format!("congestion={other},dscp=ef,max-pacing-rate=1mbit,mss=1000,fast-open=9");
        let told: Tuning = told.parse().unwrap();
        prepare_listener(&listener, &told.over(&Tuning::base())).unwrap();
        let (congestion, tos, announced) = accepted(&listener);
        assert!(congestion.starts_with(other.as_bytes()));
        assert!(tos == 46 << 2 && announced <= 1000);
        prepare_listener(&listener, &Tuning::base()).unwrap();
        assert_eq!(accepted(&listener), before);
    }
}
