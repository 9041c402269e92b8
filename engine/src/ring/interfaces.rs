//! The addresses of this machine.
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Every address of every interface, broadcast addresses of IPv4 networks included: what a relay must not send to.
///
/// # Errors
/// `getifaddrs(3)`.
pub(crate) fn local_addresses() -> io::Result<Vec<IpAddr>> {
    let mut first = std::ptr::null_mut();
    // SAFETY: `first` is a place for one pointer; on success it heads a list that lives until `freeifaddrs` below.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = first;
    while !next.is_null() {
        // SAFETY: a non-null link of the list is an initialised `ifaddrs`, freed only after the loop.
        let interface = unsafe { &*next };
        found.extend(address(interface.ifa_addr));
        if interface.ifa_flags & (libc::IFF_BROADCAST as libc::c_uint) != 0 {
            // `ifa_ifu` is a union of the broadcast and the peer's address; the flag says which it is.
            found.extend(address(interface.ifa_ifu));
        }
        next = interface.ifa_next;
    }
    // SAFETY: `first` came from `getifaddrs` and is freed once; no reference into the list is left.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

fn address(from: *const libc::sockaddr) -> Option<IpAddr> {
    if from.is_null() {
        return None;
    }
    // SAFETY: a non-null address of the list has at least a family, and is as long as its family says.
    match i32::from(unsafe { (*from).sa_family }) {
        libc::AF_INET => {
            // SAFETY: the family says that it is this type; the list may not align it, hence the unaligned read.
            let v4 = unsafe { from.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { from.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_them() {
        assert!(local_addresses().unwrap().contains(&Ipv4Addr::LOCALHOST.into()));
    }
}
