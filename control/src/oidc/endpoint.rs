//! Addresses of a provider: HTTPS, or HTTP on this machine. What a provider publishes is a stranger's text.
use std::fmt;
use std::net::IpAddr;

use hyper::Uri;

/// Longest URL taken from a provider.
const URL_BYTES_MAX: usize = 2048;

/// Where a request to a provider goes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) tls: bool,
    /// Name or address, IPv6 without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Path and query, beginning with `/`.
    pub(crate) target: String,
}

impl Endpoint {
    /// Reads a URL; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > URL_BYTES_MAX {
            return Err("the URL is far too long");
        }
        let uri: Uri = text.parse().map_err(|_| "no URL")?;
        let authority = uri.authority().ok_or("no https:// URL")?;
        if authority.as_str().contains('@') {
            return Err("a URL with a user name in it");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if is_loopback(&host) => false,
            Some("http") => return Err("http:// is for this machine alone: use https://"),
            _ => return Err("no https:// URL"),
        };
        // A port that is none is no default one.
        let bare = authority.as_str().len() == authority.host().len();
        if host.is_empty() || (!bare && authority.port_u16().is_none()) {
            return Err("no https:// URL");
        }
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let target = uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        Ok(Self { tls, host, port, target })
    }

    /// `HOST:PORT`, IPv6 in brackets: for dialling and for the `Host` header.
    pub(crate) fn host_port(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Without the query, which may hold secrets.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.host_port())
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_leaves_this_machine() {
        let read = |text| {
            Endpoint::parse(text).map(|found| format!("{} {}", found.host_port(), found.target))
        };
        assert_eq!(read("https://id.example/a?b=c").unwrap(), "id.example:443 /a?b=c");
        assert_eq!(read("https://[2001:db8::1]:8443").unwrap(), "[2001:db8::1]:8443 /");
        assert_eq!(read("http://localhost:1/x").unwrap(), "localhost:1 /x");
        assert_eq!(read("http://[::1]:1/x").unwrap(), "[::1]:1 /x");
        for bad in [
            "http://id.example/",
            "http://127.0.0.1.evil.example/",
            "ftp://id.example/",
            "/relative",
            "https://user@id.example/",
            "https://",
            "https://id.example:99999/",
            "javascript:alert(1)",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(read(&format!("https://id.example/{}", "x".repeat(URL_BYTES_MAX))).is_err());
    }

    #[test]
    fn what_is_shown_has_no_query() {
        let endpoint = Endpoint::parse("https://id.example/a?code=secret").unwrap();
        assert_eq!(
            format!("{endpoint:?} {endpoint}"),
            "https://id.example:443/a https://id.example:443/a"
        );
    }
}
