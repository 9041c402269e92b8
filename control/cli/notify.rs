//! What systemd is told of a `Type=notify` service: one datagram per change, see sd_notify(3). Without systemd, nothing.
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// It serves.
pub(crate) fn ready() {
    tell("READY=1");
}

/// It stops.
pub(crate) fn stopping() {
    tell("STOPPING=1");
}

/// Another process is the service's main one from now on. To be said by the main one, so that `NotifyAccess=main` will do.
pub(crate) fn main_is(pid: i32) {
    tell(&format!("MAINPID={pid}"));
}

fn tell(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, state, "systemd could not be told");
    }
}

/// `@NAME` is an abstract socket, anything else a path.
fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reaches_a_socket_of_either_kind() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("notify");
        let name = format!("switchback-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&abstract_name).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        send(OsStr::new(&format!("@{name}")), "MAINPID=7").unwrap();
        for (socket, expected) in [(by_path, "READY=1"), (by_name, "MAINPID=7")] {
            let mut text = [0; 64];
            let count = socket.recv(&mut text).unwrap();
            assert_eq!(&text[..count], expected.as_bytes());
        }
        assert!(send(temp.path().join("none").as_os_str(), "READY=1").is_err());
    }
}
