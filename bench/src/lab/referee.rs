//! An independent opinion of a NAT: coturn's RFC 5780 client against coturn, both inside the lab.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::Lab;
use super::nat::{Filtering, Mapping, NatSettings};
use super::probe;

/// Longest time coturn needs until it listens.
const START: Duration = Duration::from_secs(5);

/// What `turnutils_natdiscovery` found out; `None` is what it does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// When the same inside endpoint is seen as another one.
    pub mapping: Option<Mapping>,
    /// Who may answer.
    pub filtering: Option<Filtering>,
}

impl Verdict {
    /// Whether it is these settings that it describes. What it does not say contradicts.
    pub fn agrees_with(self, settings: &NatSettings) -> bool {
        self.mapping == Some(settings.mapping) && self.filtering == Some(settings.filtering)
    }

    fn read(text: &str) -> Verdict {
        let line = |what: &str| text.lines().find(|line| line.contains(what)).unwrap_or_default();
        let (mapping, filtering) = (line(" Mapping!"), line(" Filtering!"));
        let known = [
            ("Address and Port Dependent", Mapping::AddressAndPortDependent),
            ("Address Dependent", Mapping::AddressDependent),
            ("Endpoint Independent", Mapping::EndpointIndependent),
        ];
        let as_filtering = |mapping: Mapping| match mapping {
            Mapping::None => Filtering::Open,
            Mapping::EndpointIndependent => Filtering::EndpointIndependent,
            Mapping::AddressDependent => Filtering::AddressDependent,
            Mapping::AddressAndPortDependent => Filtering::AddressAndPortDependent,
        };
        let said = |line: &str| {
            known.iter().find(|(words, _)| line.contains(words)).map(|(_, mapping)| *mapping)
        };
        Verdict { mapping: said(mapping), filtering: said(filtering).map(as_filtering) }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mapping {
            Some(mapping) => write!(f, "{mapping:?}")?,
            None => write!(f, "?")?,
        }
        match self.filtering {
            Some(filtering) => write!(f, " / {filtering:?}"),
            None => write!(f, " / ?"),
        }
    }
}

/// What coturn says of the NAT between `client` and `server`, which needs two IPv4 addresses. `None`
/// where coturn is not installed.
///
/// # Errors
/// Its server does not start, or its client cannot.
pub fn coturn(lab: &Lab, client: &str, server: &str) -> io::Result<Option<Verdict>> {
    let own: Vec<IpAddr> =
        lab.host(server).addresses().into_iter().filter(IpAddr::is_ipv4).take(2).collect();
    let [first, second] = own[..] else {
        return Err(io::Error::other("the server needs two IPv4 addresses"));
    };
    let mut command = lab.host(server).command("turnserver");
    command.args(["-n", "--no-auth", "--no-tls", "--no-dtls", "--no-cli", "--stun-only"]);
    command.args(["-L", &first.to_string(), "-L", &second.to_string(), "-p", "3478"]);
    command.args(["--alt-listening-port", "3479", "--log-file", "stdout"]);
    command.args(["--pidfile", "/dev/null"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Some(running) = installed(command.spawn())?.map(Ending) else { return Ok(None) };
    wait_for_stun(lab, server, [first, second])?;
    let mut command = lab.host(client).command("turnutils_natdiscovery");
    command.args(["-m", "-f", &first.to_string()]);
    let output = installed(command.output())?;
    drop(running);
    Ok(output.map(|output| Verdict::read(&String::from_utf8_lossy(&output.stdout))))
}

fn installed<T>(started: io::Result<T>) -> io::Result<Option<T>> {
    match started {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Ends a program of ours.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Until all of it answers a binding request (RFC 8489): type 1, no attributes, cookie, an id.
fn wait_for_stun(lab: &Lab, server: &str, addresses: [IpAddr; 2]) -> io::Result<()> {
    let request = *b"\x00\x01\x00\x00\x21\x12\xa4\x42switchback!!";
    let socket = probe::socket(lab.host(server), (Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let start = Instant::now();
    for address in addresses {
        for port in [3478, 3479] {
            let mut answer = [0; 512];
            loop {
                // Nobody may listen yet, which a later receive reports.
                let _ = socket.send_to(&request, (address, port));
                if socket
                    .recv_from(&mut answer)
                    .is_ok_and(|(_, from)| from == (address, port).into())
                {
                    break;
                }
                if start.elapsed() > START {
                    return Err(io::Error::other("turnserver does not answer"));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coturns_verdict_is_read_from_its_words() {
        let text = "-= Mapping Behavior Discovery =-\nNAT with Address and Port Dependent Mapping!\n\
                    ========\nNAT with Address Dependent Filtering!\n";
        let says = Verdict {
            mapping: Some(Mapping::AddressAndPortDependent),
            filtering: Some(Filtering::AddressDependent),
        };
        assert_eq!(Verdict::read(text), says);
        assert_eq!(Verdict::read("?"), Verdict { mapping: None, filtering: None });
    }
}
