//! One end's UDP: its underlay, the gateway's addresses, and what is told of itself.
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use switchback_shortpath::underlay::{
    RelayAccess as PathRelay, RelayServer, Shortpath, ShortpathPlan, UdpPolicy, Underlay,
    UnderlayConfig, look_up,
};
use switchback_shortpath::{Role, SessionHandle, SessionKey};
use tokio::sync::watch;

use super::UdpOptions;
use crate::code::{Code, Fault};
use crate::wire::{Candidate, RelayAccess, Standby, TransportPolicy, UdpAccess, UdpUse};

/// An end's UDP. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    underlay: Underlay,
    home: Arc<Home>,
}

/// The broker and gateway as this end dials them.
#[derive(Debug)]
struct Home {
    /// `HOST:PORT`.
    name: String,
    /// The name has resolved.
    located: AtomicBool,
}

/// Who a session's ends are to each other.
pub(crate) struct Identity<'a> {
    pub(crate) role: Role,
    pub(crate) key: &'a SessionKey,
    /// The other end's, DER.
    pub(crate) peer_key: Vec<u8>,
    /// Code point of the session's packets, if the resource has one.
    pub(crate) dscp: Option<u8>,
}

impl Reach {
    /// Opens the sockets and looks around; `home` is the broker's `HOST:PORT`. `None`: this end does without UDP. Call within
    /// a tokio runtime.
    ///
    /// # Errors
    /// [`Code::UdpUnavailable`].
    pub(crate) fn start(options: &UdpOptions, home: &str) -> Result<Option<Self>, Fault> {
        if !options.enabled {
            return Ok(None);
        }
        let config = UnderlayConfig {
            ports: options.ports.clone(),
            managed_port: options.managed_port,
            networks: options.networks.clone(),
            port_mapping: options.port_mapping,
            dscp: options.dscp,
            // A broker on this machine has its peers there too.
            loopback: is_loopback(home),
            ..UnderlayConfig::default()
        };
        let underlay = Underlay::start(config).map_err(|error| unavailable(options, &error))?;
        let home = Arc::new(Home { name: home.to_owned(), located: AtomicBool::new(false) });
        let this = Self { underlay, home };
        // Beside the link's own dialling: a session that is asked for as soon as the link is up can say where this end is.
        this.locate();
        Ok(Some(this))
    }

    /// Finds the gateway's address anew, in the background: at the start, and when the link has just come up, so its name can
    /// be resolved.
    pub(crate) fn locate(&self) {
        let this = self.clone();
        tokio::spawn(async move {
            let name = &this.home.name;
            match look_up(name).await {
                Ok(found) => {
                    this.home.located.store(true, Ordering::Relaxed);
                    this.underlay.set_servers(found);
                }
                Err(error) => {
                    tracing::warn!(name, %error, "the gateway's address is not known, so UDP is not");
                }
            }
        });
    }

    /// Where this end can be reached, as far as is known; never waits.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        self.underlay.candidates()
    }

    /// What all UDP of this process ignored or refused so far, by name.
    pub(crate) fn ignored(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let refused = ("quic_peer_refused", self.underlay.refused_peers());
        self.underlay.ignored().by_name().into_iter().chain([refused])
    }

    /// Changes when the candidates do.
    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.underlay.changed()
    }

    /// Starts the search for a session, which waits for no name: where the relay is is found out beside it.
    ///
    /// # Errors
    /// [`Code::MessageMalformed`] if the broker's words make no sense.
    pub(crate) fn connect(
        &self,
        who: Identity<'_>,
        access: UdpAccess,
        transport: TransportPolicy,
        session: &SessionHandle,
    ) -> Result<Shortpath, Fault> {
        let token = data_encoding::HEXLOWER
            .decode(access.token.reveal().as_bytes())
            .ok()
            .and_then(|token| token.try_into().ok())
            .ok_or_else(|| Code::MessageMalformed.because("the session's token is malformed"))?;
        if !access.local.is_valid() || !access.remote.is_valid() {
            return Err(
                Code::MessageMalformed.because("the session's ICE credentials are malformed")
            );
        }
        let plan = ShortpathPlan {
            role: who.role,
            local: access.local,
            remote: access.remote,
            remote_candidates: access.candidates,
            relay: access.relay.map(|relay| self.relay(relay)),
            key: who.key.clone(),
            peer_key: who.peer_key,
            token,
            policy: policy(transport),
            dscp: who.dscp,
            standby: transport.standby != Standby::Cold,
        };
        Ok(self.underlay.connect(plan, session))
    }

    /// The relay as the underlay wants it.
    pub(crate) fn relay(&self, access: RelayAccess) -> PathRelay {
        let RelayAccess { server, username, password } = access;
        if server.is_none() && !self.home.located.load(Ordering::Relaxed) {
            self.locate();
        }
        let server = server.map_or(RelayServer::Gateway, RelayServer::Named);
        PathRelay { server, username, password: password.reveal().to_owned() }
    }
}

/// Which kinds of UDP legs a policy allows.
pub(crate) const fn policy(transport: TransportPolicy) -> UdpPolicy {
    match transport.udp {
        UdpUse::Prefer => UdpPolicy::ALL,
        UdpUse::Require => UdpPolicy { direct: true, managed: true, relay: false },
        UdpUse::RelayOnly => UdpPolicy { direct: false, managed: false, relay: true },
        UdpUse::Off => UdpPolicy::NONE,
    }
}

fn is_loopback(home: &str) -> bool {
    let host = home.rsplit_once(':').map_or(home, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn unavailable(options: &UdpOptions, error: &io::Error) -> Fault {
    let ports = options
        .ports
        .as_ref()
        .map_or_else(String::new, |ports| format!(", ports {}-{}", ports.start(), ports.end()));
    let managed = options.managed_port.map_or_else(String::new, |port| format!(", port {port}"));
    Code::UdpUnavailable.because(format!("UDP sockets{ports}{managed}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_allows_its_kinds_of_legs() {
        let of = |udp| {
            let UdpPolicy { direct, managed, relay } =
                policy(TransportPolicy { udp, ..TransportPolicy::default() });
            (direct, managed, relay)
        };
        assert_eq!(of(UdpUse::Prefer), (true, true, true));
        assert_eq!(of(UdpUse::Require), (true, true, false));
        assert_eq!(of(UdpUse::RelayOnly), (false, false, true));
        assert_eq!(of(UdpUse::Off), (false, false, false));
    }

    #[test]
    fn a_broker_on_this_machine_is_told_by_its_address() {
        for (home, near) in [
            ("127.0.0.1:443", true),
            ("[::1]:443", true),
            ("localhost:443", true),
            ("192.0.2.1:443", false),
            ("gate.example:443", false),
        ] {
            assert_eq!(is_loopback(home), near, "{home}");
        }
    }

    #[tokio::test]
    async fn ports_that_are_taken_are_told_as_such() {
        // Takes the port for both families, where there are two.
        let both = std::net::UdpSocket::bind("[::]:0");
        let taken = both.or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap();
        let port = taken.local_addr().unwrap().port();
        let options = UdpOptions { ports: Some(port..=port), ..UdpOptions::default() };
        let fault = Reach::start(&options, "127.0.0.1:443").unwrap_err();
        assert_eq!(fault.code, Code::UdpUnavailable);
        assert!(fault.detail.contains(&port.to_string()), "{fault}");
        assert!(Reach::start(&UdpOptions::off(), "127.0.0.1:443").unwrap().is_none());
    }
}
