//! Against a router on the loopback interface that a test plays.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// Ports by number, with the port each leads to; answers one request at a time.
struct Router {
    place: Place,
    ports: Arc<Mutex<BTreeMap<u16, u16>>>,
}

impl Router {
    /// `taken` is somebody else's port; `adding` overrides the answer to who wants a port.
    async fn start(taken: Option<u16>, adding: Option<(u16, &'static str)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
        let ports = Arc::new(Mutex::new(BTreeMap::new()));
        let state = ports.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let request = read(&mut stream).await;
                let (status, body) = answer(&request, taken, adding, &mut state.lock().unwrap());
                let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n", body.len());
                // Whoever has heard enough may be gone.
                let _ = stream.write_all((head + &body).as_bytes()).await;
            }
        });
        Self { place: Place { address, path: "/d.xml".into() }, ports }
    }

    fn ports(&self) -> BTreeMap<u16, u16> {
        self.ports.lock().unwrap().clone()
    }

    async fn ask(&self) -> Result<Port, MappingFailure> {
        Port::ask_at(&self.place, "127.0.0.1:4000".parse().unwrap(), HOUR).await
    }
}

async fn read(stream: &mut TcpStream) -> String {
    let (mut request, mut buffer) = (String::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut buffer).await.unwrap();
        request += std::str::from_utf8(&buffer[..length]).unwrap();
        let whole = request.starts_with("GET") && request.ends_with("\r\n\r\n");
        if whole || request.contains("</s:Envelope>") || length == 0 {
            return request;
        }
    }
}

fn answer(
    request: &str,
    taken: Option<u16>,
    adding: Option<(u16, &'static str)>,
    ports: &mut BTreeMap<u16, u16>,
) -> (u16, String) {
    let number = |name: &str| -> u16 {
        let (_, rest) = request.split_once(&format!("<{name}>")).unwrap();
        rest.split_once('<').unwrap().0.parse().unwrap()
    };
    let fault = |code: u16| (500, format!("<e><errorCode>{code}</errorCode></e>"));
    if request.starts_with("GET /d.xml ") {
        let kind = "urn:schemas-upnp-org:service:WANIPConnection:1";
        return (
            200,
            format!(
                "<root><service><serviceType>{kind}</serviceType><controlURL>/c</controlURL></service></root>"
            ),
        );
    }
    assert!(request.starts_with("POST /c "), "{request}");
    if request.contains("WANIPConnection:1#GetExternalIPAddress\"") {
        return (200, "<a><NewExternalIPAddress>203.0.113.7</NewExternalIPAddress></a>".into());
    }
    let external = number("NewExternalPort");
    if request.contains("#DeletePortMapping\"") {
        ports.remove(&external);
        return (200, "<a/>".into());
    }
    assert_eq!(number("NewLeaseDuration"), 3600);
    if let Some((status, body)) = adding {
        return (status, body.into());
    }
    if taken == Some(external) {
        return fault(718);
    }
    ports.insert(external, number("NewInternalPort"));
    (200, "<a/>".into())
}

#[tokio::test]
async fn a_port_is_mapped_renewed_and_given_back() {
    let router = Router::start(None, None).await;
    let port = router.ask().await.unwrap();
    assert_eq!(port.external, "203.0.113.7:4000".parse().unwrap());
    assert_eq!(router.ports(), BTreeMap::from([(4000, 4000)]));
    let renewed = port.renew(HOUR).await.unwrap();
    assert_eq!(renewed.external, port.external);
    renewed.give_back().await;
    assert_eq!(router.ports(), BTreeMap::new());
}

#[tokio::test]
async fn another_number_is_taken_where_somebody_has_ours() {
    let router = Router::start(Some(4000), None).await;
    let port = router.ask().await.unwrap();
    assert_ne!(port.external.port(), 4000);
    assert_eq!(router.ports(), BTreeMap::from([(port.external.port(), 4000)]));
}

#[tokio::test]
async fn a_router_that_maps_only_for_ever_or_babbles_gives_none() {
    const PERMANENT: &str = "<e><errorCode>725</errorCode></e>";
    for adding in [(500, PERMANENT), (500, "babble"), (404, "")] {
        let router = Router::start(None, Some(adding)).await;
        assert_eq!(router.ask().await.unwrap_err(), MappingFailure::Refused, "{adding:?}");
        assert_eq!(router.ports(), BTreeMap::new());
    }
}

#[tokio::test]
async fn an_endless_description_is_not_read_to_its_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
    let sent = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut sent = 0;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b' '; 1024]).await.is_ok() {
            sent += 1024;
        }
        sent
    });
    let place = Place { address, path: "/".into() };
    let error = get(&place).await.unwrap_err();
    assert_ne!(error.kind(), io::ErrorKind::TimedOut);
    // What the kernel buffers was sent too.
    assert!(sent.await.unwrap() < 16 << 20);
}

#[tokio::test]
async fn answers_to_a_search_count_only_from_the_router() {
    // Two hosts of one network: the loopback's.
    let [router, stranger] = ["127.0.0.1:0", "127.0.0.2:0"];
    let router = UdpSocket::bind(router).await.unwrap();
    let stranger = UdpSocket::bind(stranger).await.unwrap();
    let SocketAddr::V4(address) = router.local_addr().unwrap() else { unreachable!() };
    let found = tokio::spawn(search(address, Ipv4Addr::LOCALHOST));
    let (length, client) = router.recv_from(&mut [0; 500]).await.unwrap();
    assert_eq!(length, SEARCH_REQUEST.len());
    let answer = |path| format!("HTTP/1.1 200 OK\r\nLOCATION: http://127.0.0.1:1/{path}\r\n\r\n");
    stranger.send_to(answer("strange").as_bytes(), client).await.unwrap();
    router.send_to(b"babble", client).await.unwrap();
    router.send_to(answer("own").as_bytes(), client).await.unwrap();
    assert_eq!(found.await.unwrap().unwrap().path, "/own");
}
