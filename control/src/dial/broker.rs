//! HTTPS to the broker, to the one key that the invitation names.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use switchback_engine::Refusal;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::code::{Code, Fault};
use crate::dial::{pin, tcp};
use crate::invite::Invite;

/// An open TLS connection to a broker whose key is the pinned one; HTTP/1.1 comes next.
pub type BrokerStream = TlsStream<TcpStream>;

/// TCP and TLS together: two lost SYNs (1 + 2 s) and a handshake over a slow link still fit.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const HTTPS_PORT: u16 = 443;

/// Where a broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerAddress {
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl BrokerAddress {
    /// Reads the `https://HOST[:PORT]` of an invitation.
    ///
    /// # Errors
    /// [`Code::InviteInvalid`] if it is anything else.
    pub fn of(invite: &Invite) -> Result<Self, Fault> {
        let invalid = || Code::InviteInvalid.because("the string's address is no https:// URL");
        let uri: hyper::Uri = invite.url.parse().map_err(|_| invalid())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(invalid)?;
        if uri.scheme_str() != Some("https") {
            return Err(invalid());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(HTTPS_PORT) })
    }

    /// `HOST:PORT`, IPv6 in brackets: for dialling and for the HTTP `Host` header.
    #[must_use]
    pub fn host_port(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Opens TLS to the invitation's broker and checks its key against the pin.
///
/// # Errors
/// [`Code::InviteInvalid`], [`Code::BrokerUnreachable`], [`Code::BrokerPinMismatch`], or the gateway's refusal
/// where it turns the connection away.
pub async fn connect_broker(invite: &Invite) -> Result<BrokerStream, Fault> {
    let host_port = BrokerAddress::of(invite)?.host_port();
    secure(invite, tcp::connect(&host_port, CONNECT_TIMEOUT)).await
}

/// As [`connect_broker`], over a connection that the caller makes: from an address of its choice, say.
///
/// # Errors
/// As [`connect_broker`].
pub async fn secure(
    invite: &Invite,
    connecting: impl Future<Output = io::Result<TcpStream>>,
) -> Result<BrokerStream, Fault> {
    let address = BrokerAddress::of(invite)?;
    let config = Arc::new(pin::client_config(&invite.pin)?);
    let name = ServerName::try_from(address.host.clone())
        .map_err(|_| Code::InviteInvalid.because("the string's host name is malformed"))?;
    let host_port = address.host_port();
    let opened = timeout(CONNECT_TIMEOUT, async {
        let stream = connecting.await?;
        tcp::give_up_on_silence(&stream)?;
        TlsConnector::from(config).connect(name, stream).await
    });
    match opened.await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(explain(&host_port, &error)),
        Err(_) => Err(Code::BrokerUnreachable.because(format!("{host_port}: timed out"))),
    }
}

fn explain(host_port: &str, error: &io::Error) -> Fault {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let code = match tls {
        Some(rustls::Error::InvalidCertificate(_)) => Code::BrokerPinMismatch,
        Some(rustls::Error::AlertReceived(alert)) => {
            Refusal::from_alert(u8::from(*alert)).map_or(Code::BrokerUnreachable, Code::from)
        }
        _ => Code::BrokerUnreachable,
    };
    code.because(format!("{host_port}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invite::InviteKind;
    use crate::secret::Secret;

    fn invite(url: &str) -> Invite {
        Invite {
            kind: InviteKind::Login,
            url: url.into(),
            pin: data_encoding::BASE64URL_NOPAD.encode(&[7; 32]),
            token: Secret::new("token"),
        }
    }

    #[test]
    fn addresses_of_every_form_are_read() {
        let read = |url| BrokerAddress::of(&invite(url)).map(|address| address.host_port());
        assert_eq!(read("https://gate.example").unwrap(), "gate.example:443");
        assert_eq!(read("https://192.0.2.1:8443").unwrap(), "192.0.2.1:8443");
        assert_eq!(read("https://[2001:db8::1]:8443/").unwrap(), "[2001:db8::1]:8443");
        for bad in ["http://gate.example", "gate.example:443", "https://", "", "https://a b"] {
            assert_eq!(read(bad).unwrap_err().code, Code::InviteInvalid, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_broker_that_does_not_listen_is_unreachable() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let fault = connect_broker(&invite(&format!("https://{gone}"))).await.unwrap_err();
        assert_eq!(fault.code, Code::BrokerUnreachable);
    }

    #[tokio::test]
    async fn a_damaged_pin_is_a_damaged_invitation() {
        let mut damaged = invite("https://127.0.0.1:1");
        damaged.pin = "short".into();
        assert_eq!(connect_broker(&damaged).await.unwrap_err().code, Code::InviteInvalid);
    }
}
