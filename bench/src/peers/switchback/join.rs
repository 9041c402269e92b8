//! Admission of one flow: both legs show their hello, the gateway joins them.
//!
//! The gateway forwards the client's hello to the agent's leg, where it is read and compared; from
//! then on the two legs are a byte pipe. A refusal is a fatal TLS alert (RFC 8446, section 6).

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use data_encoding::BASE64;
use serde::{Deserialize, Deserializer};

use crate::peers::Flow;
use crate::peers::socket::{CONNECT_WITHIN, Dialer};

/// Two matching admissions, as `switchback pairs` prints them. Hellos hold tickets: no Debug.
#[derive(Deserialize)]
pub(crate) struct Pair {
    #[serde(deserialize_with = "base64")]
    pub(crate) client_hello: Vec<u8>,
    #[serde(deserialize_with = "base64")]
    pub(crate) agent_hello: Vec<u8>,
}

/// The name of the refusal that `bytes` are, if a gateway refused a leg with them.
pub(crate) fn refusal(bytes: &[u8]) -> Option<String> {
    is_alert(bytes).then(|| alert_name(bytes[6]))
}

/// TLS record type of an alert.
const ALERT: u8 = 21;

/// A whole unencrypted alert: record header (5), level, description.
const ALERT_BYTES: usize = 7;

/// Dials both legs and returns them as a flow ready for bytes.
///
/// # Errors
/// A leg is refused (the alert is named), closed, silent for 5 s, or another hello comes out.
pub(super) fn join(dialer: &Dialer, gateway: SocketAddr, pair: &Pair) -> Result<Flow> {
    let mut far = dialer.connect_far(gateway).context("dialling as the agent")?;
    far.write_all(&pair.agent_hello).context("sending the agent's hello")?;
    let mut near = dialer.connect(gateway).context("dialling as the client")?;
    near.write_all(&pair.client_hello).context("sending the client's hello")?;
    far.set_read_timeout(Some(CONNECT_WITHIN))?;
    let mut forwarded = vec![0; pair.client_hello.len()];
    if let Err(error) = read_hello(&mut far, &mut forwarded) {
        return Err(refusal_on(&mut near).unwrap_or(error));
    }
    ensure!(forwarded == pair.client_hello, "another hello came out of the gateway");
    far.set_read_timeout(None)?;
    Ok(Flow { near, far })
}

/// Reads exactly one hello's length, unless an alert comes first.
fn read_hello(far: &mut TcpStream, hello: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while filled < hello.len() {
        match far.read(&mut hello[filled..]) {
            Ok(0) if is_alert(&hello[..filled]) => {
                bail!("the gateway refused the agent's leg: {}", alert_name(hello[6]))
            }
            Ok(0) => bail!("the gateway closed the agent's leg after {filled} bytes"),
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("the gateway did not join the legs within {CONNECT_WITHIN:?}")
            }
            Err(error) => return Err(error).context("reading the forwarded hello"),
        }
    }
    Ok(())
}

/// The alert on the client's leg, if one is there already.
fn refusal_on(near: &mut TcpStream) -> Option<anyhow::Error> {
    near.set_nonblocking(true).ok()?;
    let mut bytes = [0; ALERT_BYTES];
    near.read_exact(&mut bytes).ok()?;
    let refusal = refusal(&bytes)?;
    Some(anyhow::anyhow!("the gateway refused the client's leg: {refusal}"))
}

fn is_alert(bytes: &[u8]) -> bool {
    bytes.len() == ALERT_BYTES && bytes[0] == ALERT
}

/// The gateway's refusals: alert description 224 and up, which RFC 8446 (section 6) leaves unassigned.
const REFUSALS: [&str; 15] = [
    "HELLO_NOT_TLS",
    "HELLO_MALFORMED",
    "HELLO_TOO_LARGE",
    "HELLO_TIMEOUT",
    "HELLO_TRUNCATED",
    "HELLO_LIMIT",
    "TICKET_INVALID",
    "TICKET_EXPIRED",
    "TICKET_REPLAYED",
    "TICKET_WRONG_SIDE",
    "LEG_UNPAIRED",
    "LEG_DUPLICATE",
    "LEG_LIMIT",
    "PAIR_LIMIT",
    "GATEWAY_DRAINING",
];

/// Where [`REFUSALS`] begin.
const REFUSALS_FROM: u8 = 224;

fn alert_name(description: u8) -> String {
    let index = description.checked_sub(REFUSALS_FROM).map(usize::from);
    let name = index.and_then(|index| REFUSALS.get(index)).unwrap_or(&"not one of its refusals");
    format!("{name} (TLS alert {description})")
}

fn base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    BASE64.decode(text.as_bytes()).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::socket::accept;
    use crate::peers::verify::verify;
    use std::thread;

    fn pair() -> Pair {
        // "client hello" and "agent hello"
        let json =
            r#"{"pair":"00","client_hello":"Y2xpZW50IGhlbGxv","agent_hello":"YWdlbnQgaGVsbG8="}"#;
        serde_json::from_str(json).unwrap()
    }

    /// Accepts both legs, reads their hellos, and hands them to `then`.
    fn gateway(then: fn(TcpStream, TcpStream)) -> (SocketAddr, thread::JoinHandle<()>) {
        let listener = Dialer::system_default().listen().unwrap();
        let addr = listener.local_addr().unwrap();
        let serve = move || {
            let (mut agent, mut client) = (accept(&listener).unwrap(), accept(&listener).unwrap());
            agent.read_exact(&mut [0; 11]).unwrap();
            client.read_exact(&mut [0; 12]).unwrap();
            then(agent, client);
        };
        (addr, thread::spawn(serve))
    }

    fn copy(mut from: TcpStream, mut to: TcpStream) {
        std::io::copy(&mut from, &mut to).unwrap();
        to.shutdown(std::net::Shutdown::Write).unwrap();
    }

    #[test]
    fn joined_legs_are_a_byte_pipe_without_the_hello() {
        let (addr, served) = gateway(|mut agent, client| {
            agent.write_all(b"client hello").unwrap();
            let (agent_too, client_too) = (agent.try_clone().unwrap(), client.try_clone().unwrap());
            let back = thread::spawn(move || copy(agent_too, client_too));
            copy(client, agent);
            back.join().unwrap();
        });
        verify(join(&Dialer::system_default(), addr, &pair()).unwrap()).unwrap();
        served.join().unwrap();
    }

    #[test]
    fn a_refusal_on_either_leg_is_named() {
        let (addr, _) = gateway(|mut agent, _| agent.write_all(&[21, 3, 3, 0, 2, 2, 231]).unwrap());
        let error = join(&Dialer::system_default(), addr, &pair()).unwrap_err().to_string();
        assert!(error.contains("agent's leg") && error.contains("TICKET_EXPIRED"), "{error}");
        let (addr, _) =
            gateway(|_, mut client| client.write_all(&[21, 3, 3, 0, 2, 2, 112]).unwrap());
        let error = join(&Dialer::system_default(), addr, &pair()).unwrap_err().to_string();
        assert!(error.contains("client's leg") && error.contains("alert 112"), "{error}");
    }

    #[test]
    fn another_hello_is_an_error() {
        let (addr, _) = gateway(|mut agent, _| agent.write_all(b"client HELLO").unwrap());
        assert!(join(&Dialer::system_default(), addr, &pair()).is_err());
    }
}
