//! What is said to a router by UPnP, and what its answers mean (UPnP Device Architecture 1.1; WANIPConnection:1 and :2,
//! WANPPPConnection:1). Pure.
use std::net::{Ipv4Addr, SocketAddrV4};

use hyper::Uri;
use roxmltree::{Document, Node};

/// Where routers listen for searches (Device Architecture 1.1 section 1.3.2).
pub(super) const SEARCH: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);

/// Asks any Internet gateway for the address of its description; one of version 2 answers to version 1, too. MX is the longest
/// wait for an answer in seconds, the least there is.
pub(super) const SEARCH_REQUEST: &[u8] = b"M-SEARCH * HTTP/1.1\r\n\
    HOST: 239.255.255.250:1900\r\n\
    MAN: \"ssdp:discover\"\r\n\
    MX: 1\r\n\
    ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n";

/// Services that map ports, by preference.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];

/// A place at the router that requests go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: SocketAddrV4,
    /// With the query.
    pub(super) path: String,
}

impl Place {
    /// Of an absolute `http` URL; `None` if it leads anywhere but to the router.
    fn of(url: &str, router: Ipv4Addr) -> Option<Self> {
        let url: Uri = url.trim().parse().ok()?;
        let host: Ipv4Addr = url.host()?.parse().ok()?;
        let path = url.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let address = SocketAddrV4::new(host, url.port_u16().unwrap_or(80));
        (url.scheme_str() == Some("http") && host == router).then_some(Self { address, path })
    }

    /// What a link in a description leads to: an absolute URL, or a path at this place.
    fn join(&self, link: &str) -> Option<Self> {
        let link = link.trim();
        if link.contains("://") {
            return Self::of(link, *self.address.ip());
        }
        let path = format!("/{}", link.trim_start_matches('/'));
        path.parse::<Uri>().ok()?;
        Some(Self { address: self.address, path })
    }
}

/// A service that maps ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) control: Place,
    pub(super) kind: &'static str,
}

/// The description's place, from the answer to a search.
pub(super) fn location(answer: &[u8], router: Ipv4Addr) -> Option<Place> {
    let mut lines = std::str::from_utf8(answer).ok()?.lines();
    lines.next()?.starts_with("HTTP/1.1 200").then_some(())?;
    let header =
        |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let is_location = |(name, _): &(String, String)| name.trim().eq_ignore_ascii_case("location");
    lines.filter_map(header).find(is_location).and_then(|(_, url)| Place::of(&url, router))
}

/// The services that a description offers, best first.
pub(super) fn services(description: &str, from: &Place) -> Vec<Service> {
    let Ok(document) = Document::parse(description) else { return Vec::new() };
    let router = *from.address.ip();
    let base = text(document.root(), "URLBase").and_then(|url| Place::of(url, router));
    let base = base.as_ref().unwrap_or(from);
    let offered: Vec<_> = named(document.root(), "service").collect();
    let of_kind = |kind: &'static str| {
        let these = offered.iter().filter(move |it| text(**it, "serviceType") == Some(kind));
        let link = these.filter_map(|service| text(*service, "controlURL"));
        link.filter_map(move |link| Some(Service { control: base.join(link)?, kind }))
    };
    SERVICES.into_iter().flat_map(of_kind).collect()
}

/// What a service is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    GetExternalIpAddress,
    AddPortMapping { external: u16, to: SocketAddrV4, seconds: u32 },
    DeletePortMapping { external: u16 },
}

impl Action {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Action::GetExternalIpAddress => "GetExternalIPAddress",
            Action::AddPortMapping { .. } => "AddPortMapping",
            Action::DeletePortMapping { .. } => "DeletePortMapping",
        }
    }

    /// The body of the request to a service of this kind (section 3.2.1).
    pub(super) fn envelope(self, kind: &str) -> String {
        let (name, arguments) = (self.name(), self.arguments());
        format!(
            "<?xml version=\"1.0\"?>\r\n\
             <s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
             <u:{name} xmlns:u=\"{kind}\">{arguments}</u:{name}></s:Body></s:Envelope>\r\n"
        )
    }

    fn arguments(self) -> String {
        // The order is the service's own, and binding.
        let port = |external| {
            format!(
                "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort>\
                 <NewProtocol>UDP</NewProtocol>"
            )
        };
        match self {
            Action::GetExternalIpAddress => String::new(),
            Action::DeletePortMapping { external } => port(external),
            Action::AddPortMapping { external, to, seconds } => format!(
                "{}<NewInternalPort>{}</NewInternalPort><NewInternalClient>{}</NewInternalClient>\
                 <NewEnabled>1</NewEnabled>\
                 <NewPortMappingDescription>switchback</NewPortMappingDescription>\
                 <NewLeaseDuration>{seconds}</NewLeaseDuration>",
                port(external),
                to.port(),
                to.ip()
            ),
        }
    }
}

/// Why a router does not do what it was asked for: the `errorCode` of its answer, if there was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) Option<u16>);

impl Refusal {
    /// The port is somebody else's (WANIPConnection:1, AddPortMapping).
    pub(super) const CONFLICT: Refusal = Refusal(Some(718));
}

/// The address in an answer to `GetExternalIPAddress`; a router without an uplink tells none, or zeros.
pub(super) fn external_ip(answer: &str) -> Option<Ipv4Addr> {
    let document = Document::parse(answer).ok()?;
    let told: Ipv4Addr = text(document.root(), "NewExternalIPAddress")?.parse().ok()?;
    (!told.is_unspecified()).then_some(told)
}

/// Of an answer whose status is not 200.
pub(super) fn refusal(answer: &str) -> Refusal {
    let document = Document::parse(answer).ok();
    let code = document.as_ref().and_then(|document| text(document.root(), "errorCode"));
    Refusal(code.and_then(|code| code.parse().ok()))
}

fn named<'a, 'input>(
    node: Node<'a, 'input>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    node.descendants().filter(move |node| node.tag_name().name() == name)
}

/// The text of the first element of this name.
fn text<'a>(node: Node<'a, '_>, name: &'static str) -> Option<&'a str> {
    named(node, name).next()?.text().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

    fn place(port: u16, path: &str) -> Place {
        Place { address: SocketAddrV4::new(ROUTER, port), path: path.into() }
    }

    fn description(base: &str, services: &[(&str, &str)]) -> String {
        let one = |(kind, link): &(&str, &str)| {
            format!(
                "<service><serviceType>{kind}</serviceType><controlURL>{link}</controlURL></service>"
            )
        };
        let services: String = services.iter().map(one).collect();
        format!(
            "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\">{base}<device>\
             <deviceList><device><serviceList>{services}</serviceList></device></deviceList></device></root>"
        )
    }

    #[test]
    fn the_answer_to_a_search_tells_where_the_router_describes_itself() {
        let answer =
            |url: &str| format!("HTTP/1.1 200 OK\r\nST: x\r\nLocation:  {url}\r\nEXT:\r\n\r\n");
        let found = |url: &str| location(answer(url).as_bytes(), ROUTER);
        assert_eq!(
            found("http://192.168.1.1:5000/root.xml?a=b"),
            Some(place(5000, "/root.xml?a=b"))
        );
        assert_eq!(found("http://192.168.1.1/d.xml"), Some(place(80, "/d.xml")));
        assert_eq!(location(b"HTTP/1.1 404 Not Found\r\n\r\n", ROUTER), None);
        assert_eq!(location(b"\xff\xfe", ROUTER), None);
    }

    #[test]
    fn nobody_is_asked_but_the_router_itself() {
        for url in
            ["http://192.168.1.9:5000/x", "http://evil.example/x", "https://192.168.1.1/x", "/x"]
        {
            let answer = format!("HTTP/1.1 200 OK\r\nLOCATION: {url}\r\n\r\n");
            assert_eq!(location(answer.as_bytes(), ROUTER), None, "{url}");
        }
        let elsewhere = description("", &[(SERVICES[1], "http://192.168.1.9/ctl")]);
        assert_eq!(services(&elsewhere, &place(5000, "/d.xml")), []);
        let based = description("<URLBase>http://192.168.1.9/</URLBase>", &[(SERVICES[1], "/ctl")]);
        let own = Service { control: place(5000, "/ctl"), kind: SERVICES[1] };
        assert_eq!(services(&based, &place(5000, "/d.xml")), [own]);
    }

    #[test]
    fn services_that_map_ports_are_found_best_first() {
        let offered = [
            ("urn:schemas-upnp-org:service:Layer3Forwarding:1", "/l3"),
            (SERVICES[2], "ppp"),
            (SERVICES[1], "/ctl/IPConn"),
            (SERVICES[0], "http://192.168.1.1:49152/two"),
        ];
        let based = description("<URLBase>http://192.168.1.1:5001/</URLBase>", &offered);
        let expected = [
            Service { control: place(49_152, "/two"), kind: SERVICES[0] },
            Service { control: place(5001, "/ctl/IPConn"), kind: SERVICES[1] },
            Service { control: place(5001, "/ppp"), kind: SERVICES[2] },
        ];
        assert_eq!(services(&based, &place(5000, "/d.xml")), expected);
        assert_eq!(services("<root", &place(5000, "/d.xml")), []);
        let bomb = "<!DOCTYPE r [<!ENTITY a \"b\">]><root>&a;</root>";
        assert_eq!(services(bomb, &place(5000, "/d.xml")), [], "no DTDs");
    }

    #[test]
    fn a_request_names_port_and_target_in_the_order_of_the_service() {
        let to = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 2), 4000);
        let body =
            Action::AddPortMapping { external: 5000, to, seconds: 1200 }.envelope(SERVICES[1]);
        let document = Document::parse(&body).unwrap();
        let call = named(document.root(), "AddPortMapping").next().unwrap();
        assert_eq!(call.tag_name().namespace(), Some(SERVICES[1]));
        let arguments: Vec<_> =
            call.children().map(|it| (it.tag_name().name(), it.text().unwrap_or(""))).collect();
        let expected = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", "5000"),
            ("NewProtocol", "UDP"),
            ("NewInternalPort", "4000"),
            ("NewInternalClient", "192.168.1.2"),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", "switchback"),
            ("NewLeaseDuration", "1200"),
        ];
        assert_eq!(arguments, expected);
    }

    #[test]
    fn answers_tell_the_address_or_why_not() {
        let answer =
            |body: &str| format!("<s:Envelope xmlns:s=\"e\"><s:Body>{body}</s:Body></s:Envelope>");
        let told = |ip: &str| {
            external_ip(&answer(&format!(
                "<u:R xmlns:u=\"x\"><NewExternalIPAddress>{ip}</NewExternalIPAddress></u:R>"
            )))
        };
        assert_eq!(told(" 203.0.113.2\n"), Some(Ipv4Addr::new(203, 0, 113, 2)));
        assert_eq!((told("0.0.0.0"), told(""), told("fe80::1")), (None, None, None));
        let fault = answer(
            "<s:Fault><detail><UPnPError xmlns=\"urn:schemas-upnp-org:control-1-0\"><errorCode>718</errorCode></UPnPError></detail></s:Fault>",
        );
        assert_eq!(refusal(&fault), Refusal::CONFLICT);
        assert_eq!(refusal("no XML"), Refusal(None));
    }
}
