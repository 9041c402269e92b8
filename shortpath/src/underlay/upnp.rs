//! Asks the router for a port by UPnP, which many home routers know instead of PCP and NAT-PMP.
//!
//! Anyone on the LAN may answer a search, to have us fetch and parse what he likes: only the default router is listened to
//! and asked, at its own address, and what it says is bounded in size and time.
mod messages;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use self::messages::{
    Action, Place, Refusal, SEARCH, SEARCH_REQUEST, Service, external_ip, location, refusal,
    services,
};
use crate::path::MappingFailure;

/// Before each search; the last is followed by the second that routers may take to answer, and some more.
const SEARCHES: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(250), Duration::from_millis(750)];
const LAST_ANSWER: Duration = Duration::from_millis(1250);
/// Before the socket is read again after an error.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// One request to the router. Home routers answer in some 10 ms, and in a second when they are busy.
const EXCHANGE: Duration = Duration::from_secs(2);
/// Descriptions take some kilobytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Ports tried: our own number, then others while they are somebody else's.
const PORTS_TRIED: usize = 3;
/// Numbers that routers give: below are services of their own.
const PORTS: std::ops::RangeInclusive<u16> = 1024..=u16::MAX;

/// A UDP port at the router that leads to us, by UPnP.
#[derive(Clone, Debug)]
pub(super) struct Port {
    service: Service,
    to: SocketAddrV4,
    pub(super) external: SocketAddrV4,
}

impl Port {
    /// Finds the router's service and has it map a port to `to`, our address as the router sees it, for `lifetime` (a router that
    /// maps only for ever is not asked to: who would close the port of a process that is gone?). Takes 10 s at most, as a rule
    /// some 10 ms.
    pub(super) async fn ask(
        router: Ipv4Addr,
        to: SocketAddrV4,
        lifetime: Duration,
    ) -> Result<Self, MappingFailure> {
        let found = search(SocketAddrV4::new(router, SEARCH.port()), *to.ip()).await;
        Self::ask_at(&found.ok_or(MappingFailure::Silent)?, to, lifetime).await
    }

    async fn ask_at(
        description: &Place,
        to: SocketAddrV4,
        lifetime: Duration,
    ) -> Result<Self, MappingFailure> {
        let told = get(description).await.map_err(|error| {
            tracing::debug!(%error, "the router's description");
            MappingFailure::Silent
        })?;
        for service in services(&told, description) {
            if let Ok(port) = open(service, to, to.port(), lifetime).await {
                return Ok(port);
            }
        }
        Err(MappingFailure::Refused)
    }

    /// The same port for `lifetime` more, or another one.
    pub(super) async fn renew(&self, lifetime: Duration) -> Result<Self, MappingFailure> {
        let renewed = open(self.service.clone(), self.to, self.external.port(), lifetime).await;
        renewed.map_err(|_| MappingFailure::Refused)
    }

    /// Closes it.
    pub(super) async fn give_back(&self) {
        // It runs out by itself.
        let _ =
            call(&self.service, Action::DeletePortMapping { external: self.external.port() }).await;
    }
}

/// Asks the router alone, and the group that it should listen to: some answer only one of them.
async fn search(router: SocketAddrV4, own: Ipv4Addr) -> Option<Place> {
    let socket = UdpSocket::bind((own, 0)).await.ok()?;
    SockRef::from(&socket).set_multicast_if_v4(&own).ok()?;
    let ask = async {
        for pause in SEARCHES {
            sleep(pause).await;
            for to in [router, SEARCH] {
                // The other may be had, and a lost one comes again.
                let _ = socket.send_to(SEARCH_REQUEST, to).await;
            }
        }
        sleep(LAST_ANSWER).await;
    };
    let hear = async {
        let mut answer = [0; 2048];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut answer).await else {
                // ICMP's, of one packet; one that stays must not spin.
                sleep(ERROR_PAUSE).await;
                continue;
            };
            let found = location(&answer[..length], *router.ip());
            if let (SocketAddr::V4(from), Some(found)) = (from, found)
                && from.ip() == router.ip()
            {
                return found;
            }
        }
    };
    tokio::select! {
        () = ask => None,
        found = hear => Some(found),
    }
}

/// Maps `external`, or another port if it is taken.
async fn open(
    service: Service,
    to: SocketAddrV4,
    external: u16,
    lifetime: Duration,
) -> Result<Port, Refusal> {
    let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
    let told = call(&service, Action::GetExternalIpAddress).await?;
    let ip = external_ip(&told).ok_or(Refusal(None))?;
    let others = std::iter::repeat_with(|| rand::random_range(PORTS));
    for external in std::iter::once(external).chain(others).take(PORTS_TRIED) {
        match call(&service, Action::AddPortMapping { external, to, seconds }).await {
            Ok(_) => return Ok(Port { service, to, external: SocketAddrV4::new(ip, external) }),
            Err(Refusal::CONFLICT) => {}
            Err(refusal) => return Err(refusal),
        }
    }
    Err(Refusal::CONFLICT)
}

async fn call(service: &Service, action: Action) -> Result<String, Refusal> {
    let Service { control, kind } = service;
    let request = Request::post(&control.path)
        .header(CONTENT_TYPE, "text/xml; charset=\"utf-8\"")
        .header("SOAPAction", format!("\"{kind}#{}\"", action.name()));
    let answer = exchange(control, request, action.envelope(kind)).await;
    let refused = match answer {
        Ok((StatusCode::OK, answer)) => return Ok(answer),
        Ok((_, answer)) => refusal(&answer),
        Err(error) => {
            tracing::debug!(%error, "the router's UPnP");
            Refusal(None)
        }
    };
    tracing::debug!(action = action.name(), code = refused.0, "the router does not");
    Err(refused)
}

async fn get(place: &Place) -> io::Result<String> {
    let (status, text) = exchange(place, Request::get(&place.path), String::new()).await?;
    if status == StatusCode::OK { Ok(text) } else { Err(io::Error::other(status.to_string())) }
}

/// One request on a connection of its own.
async fn exchange(
    place: &Place,
    request: hyper::http::request::Builder,
    body: String,
) -> io::Result<(StatusCode, String)> {
    let request = request
        .header(HOST, place.address.to_string())
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(io::Error::other)?;
    let talk = async {
        let stream = TcpStream::connect(place.address).await?;
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.map_err(io::Error::other)?;
        let answered = async {
            let answer = sender.send_request(request).await.map_err(io::Error::other)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(io::Error::other)?.to_bytes();
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        tokio::pin!(answered);
        tokio::select! {
            answer = &mut answered => answer,
            // The connection may end before its answer has been taken.
            _ = connection => answered.await,
        }
    };
    timeout(EXCHANGE, talk).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests;
