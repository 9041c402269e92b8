//! Learns on a socket of its own how long the NAT keeps idle mappings: the edge of [`LifetimeProbe`].
//!
//! On the sockets that sessions use nothing can be learnt, as their packets keep the mapping. It begins only after a while,
//! so that short-lived processes do without, and again when the network is another one.
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::Inner;
use super::keeping::Known;
use super::probing;
use super::sockets::open_in_range;
use crate::path::{LifetimeProbe, LocalId, Mapping, MappingLifetime};
use crate::time::now;

/// Before the first request: a process that lives that long will probably live on.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two probes of one network: NATs are replaced and reconfigured.
const AGAIN: Duration = Duration::from_secs(6 * 60 * 60);

/// What was learnt; nothing, when the network is another one.
pub(super) type Learnt = watch::Sender<MappingLifetime>;

/// Learns until the underlay ends.
pub(super) async fn learn(inner: Arc<Inner>, learnt: Learnt) {
    let mut known = inner.known.subscribe();
    tokio::select! {
        () = inner.stop.cancelled() => {}
        () = async {
            loop {
                let server = found(&mut known, subject).await;
                let home = host(&known.borrow());
                sleep(PATIENCE).await;
                let elsewhere = found(&mut known, |known| (host(known) != home).then_some(()));
                tokio::select! {
                    () = elsewhere => {
                        learnt.send_replace(MappingLifetime::default());
                        continue;
                    }
                    result = probe(&inner, server, &learnt) => if let Err(error) = result {
                        tracing::debug!(%error, "the lifetime of mappings cannot be learnt");
                    }
                }
                let elsewhere = found(&mut known, |known| (host(known) != home).then_some(()));
                tokio::select! {
                    () = elsewhere => {}
                    () = sleep(AGAIN) => {}
                }
            }
        } => {}
    }
}

/// An IPv4 server before which a NAT stands.
fn subject(known: &Known) -> Option<SocketAddr> {
    let translated = |mapping| !matches!(mapping, Mapping::None | Mapping::Unknown);
    let mut nats = known.nats.iter().filter(|nat| translated(nat.mapping));
    let seen = |(server, mapped, _): &(SocketAddr, Option<SocketAddr>, Option<u64>)| {
        (server.is_ipv4() && mapped.is_some()).then_some(*server)
    };
    nats.find_map(|nat| nat.servers.iter().find_map(seen))
}

/// The address that a server sees without its port: the same one means the same NAT.
fn host(known: &Known) -> Option<std::net::IpAddr> {
    let mut seen = known.nats.iter().flat_map(|nat| &nat.servers);
    seen.find_map(|(_, mapped, _)| mapped.filter(SocketAddr::is_ipv4)).map(|it| it.ip())
}

/// Waits until what is known has it.
async fn found<T>(known: &mut watch::Receiver<Known>, look: impl Fn(&Known) -> Option<T>) -> T {
    loop {
        let seen = look(&known.borrow_and_update());
        if let Some(seen) = seen {
            return seen;
        }
        if known.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn probe(inner: &Inner, server: SocketAddr, learnt: &Learnt) -> io::Result<()> {
    let socket = open_in_range(LocalId(u16::MAX), false, None, &inner.config)?;
    let mut probe = LifetimeProbe::new(now(), server, rand::random());
    probing::run(&socket, &mut probe, |probe| {
        let found = probe.found();
        learnt.send_if_modified(|known| std::mem::replace(known, found) != found);
    })
    .await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::KeeperView;

    #[test]
    fn only_a_nat_before_an_ipv4_server_is_worth_a_probe() {
        let (v4, v6) = ("192.0.2.1:443".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap());
        let seen: SocketAddr = "203.0.113.2:5000".parse().unwrap();
        let known = |mapping, servers| {
            let mut known = Known::default();
            known.nats = vec![KeeperView { mapping, servers, ..KeeperView::default() }];
            known
        };
        let nat = Mapping::EndpointIndependent;
        let behind = known(nat, vec![(v6, Some(v6), None), (v4, Some(seen), Some(1))]);
        assert_eq!((subject(&behind), host(&behind)), (Some(v4), Some(seen.ip())));
        for none in [
            known(Mapping::None, vec![(v4, Some(seen), Some(1))]),
            known(nat, vec![(v4, None, None)]),
            known(nat, vec![(v6, Some(v6), None)]),
        ] {
            assert_eq!(subject(&none), None);
        }
    }
}
