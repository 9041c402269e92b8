//! What a NAT does with ports, seen in its mappings of one socket towards several servers (RFC 4787 section 4).
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Mapping behaviour (RFC 4787 section 4.1, RFC 5780 section 4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mapping {
    /// Too little was seen.
    #[default]
    Unknown,
    /// The server sees our own address: no NAT.
    None,
    /// One mapping for all destinations: what a server sees is where a peer reaches us.
    EndpointIndependent,
    /// A mapping per destination address.
    AddressDependent,
    /// A mapping per destination address and port ("symmetric").
    AddressAndPortDependent,
    /// A mapping per destination, whether per address or per port is unknown.
    Dependent,
}

impl Mapping {
    /// Whether a peer must guess our port.
    #[must_use]
    pub const fn is_hard(self) -> bool {
        matches!(self, Self::AddressDependent | Self::AddressAndPortDependent | Self::Dependent)
    }
}

/// How external ports are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ports {
    /// Too little was seen.
    #[default]
    Unknown,
    /// The inside port is kept.
    Preserved,
    /// Another port, without a rule that we see.
    Random,
    /// Each new mapping gets the last one's port plus this step.
    Sequential(i32),
}

/// One observation: in the order in which the mappings were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The server that saw it.
    pub server: SocketAddr,
    /// What it saw.
    pub mapped: SocketAddr,
}

/// What the observations of one family say about mapping; `local` is the socket's own address, if it is known.
#[must_use]
pub fn judge_mapping(local: Option<SocketAddr>, seen: &[Observation]) -> Mapping {
    let Some(first) = seen.first() else { return Mapping::Unknown };
    if local == Some(first.mapped) {
        return Mapping::None;
    }
    let others = || seen.iter().filter(|other| other.server != first.server);
    if others().next().is_none() {
        return Mapping::Unknown;
    }
    if others().all(|other| other.mapped == first.mapped) {
        // One mapping for all ports of one address may still be one per address.
        let far = others().any(|other| other.server.ip() != first.server.ip());
        return if far { Mapping::EndpointIndependent } else { Mapping::Unknown };
    }
    // Two ports of one address tell the two dependent kinds apart.
    let twins = seen.iter().flat_map(|one| {
        let twin = move |two: &&Observation| {
            one.server.ip() == two.server.ip() && one.server.port() < two.server.port()
        };
        seen.iter().filter(twin).map(move |two| one.mapped == two.mapped)
    });
    let twins: Vec<bool> = twins.collect();
    match (twins.is_empty(), twins.iter().all(|same| *same)) {
        (true, _) => Mapping::Dependent,
        (false, true) => Mapping::AddressDependent,
        (false, false) => Mapping::AddressAndPortDependent,
    }
}

/// Steps larger than that are no sequence, but chance.
const STEP_MAX: i32 = 16;

/// What the ports say.
#[must_use]
pub fn judge_ports(inside: Option<u16>, seen: &[Observation]) -> Ports {
    let ports = distinct_ports(seen);
    match ports.as_slice() {
        [] => Ports::Unknown,
        [only] if Some(*only) == inside => Ports::Preserved,
        [_] => inside.map_or(Ports::Unknown, |_| Ports::Random),
        many => sequence(many).map_or(Ports::Random, Ports::Sequential),
    }
}

/// External ports, one per mapping, in order.
fn distinct_ports(seen: &[Observation]) -> Vec<u16> {
    let mut ports: Vec<u16> = Vec::new();
    for observation in seen {
        if !ports.contains(&observation.mapped.port()) {
            ports.push(observation.mapped.port());
        }
    }
    ports
}

/// The step, if all differences have one sign and are small multiples of the least one: other hosts behind the NAT, and
/// our own other packets, take ports in between.
fn sequence(ports: &[u16]) -> Option<i32> {
    let steps = steps(ports);
    let least = steps.iter().copied().min_by_key(|step| step.abs())?;
    let regular =
        |step: &i32| step.signum() == least.signum() && step.abs() <= STEP_MAX && step % least == 0;
    (least != 0 && steps.iter().all(regular)).then_some(least)
}

fn steps(ports: &[u16]) -> Vec<i32> {
    ports.windows(2).map(|pair| i32::from(pair[1]) - i32::from(pair[0])).collect()
}

/// The next `count` addresses that a NAT with sequential, destination-dependent mappings will probably give, nearest
/// first; empty for all other NATs. Ports below 1024 are skipped. A step seen only once may have another host's port in it, so
/// then every port of its direction is named.
#[must_use]
pub fn predict_ports(seen: &[Observation], count: usize) -> Vec<SocketAddr> {
    let (Ports::Sequential(step), Some(last)) = (judge_ports(None, seen), seen.last()) else {
        return Vec::new();
    };
    if !judge_mapping(None, seen).is_hard() {
        return Vec::new();
    }
    // The furthest port seen: an older mapping that was looked at again says nothing about the next one.
    let ports = distinct_ports(seen);
    let step = if steps(&ports).len() == 1 { step.signum() } else { step };
    let ports = ports.into_iter().map(i32::from);
    let Some(furthest) = (if step > 0 { ports.max() } else { ports.min() }) else {
        return Vec::new();
    };
    let ahead = (1..=i32::try_from(count).unwrap_or(0)).map(|k| furthest + k * step);
    ahead
        .filter_map(|port| u16::try_from(port).ok().filter(|port| *port >= 1024))
        .map(|port| SocketAddr::new(last.mapped.ip(), port))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(list: &[(&str, &str)]) -> Vec<Observation> {
        let read = |&(server, mapped): &(&str, &str)| Observation {
            server: server.parse().unwrap(),
            mapped: mapped.parse().unwrap(),
        };
        list.iter().map(read).collect()
    }

    #[test]
    fn mappings_are_told_apart() {
        let (a, b, c) = ("192.0.2.1:3478", "192.0.2.1:3479", "192.0.2.2:3478");
        let (x, y, z) = ("203.0.113.2:40001", "203.0.113.2:40002", "203.0.113.2:40003");
        let judge = |list: &[(&str, &str)]| judge_mapping(None, &seen(list));
        assert_eq!(judge(&[]), Mapping::Unknown);
        assert_eq!(judge(&[(a, x)]), Mapping::Unknown);
        assert_eq!(judge(&[(a, x), (b, x), (c, x)]), Mapping::EndpointIndependent);
        assert_eq!(judge(&[(a, x), (b, x), (c, y)]), Mapping::AddressDependent);
        assert_eq!(judge(&[(a, x), (b, x)]), Mapping::Unknown, "one address tells no more");
        assert_eq!(judge(&[(a, x), (b, y)]), Mapping::AddressAndPortDependent);
        assert_eq!(judge(&[(a, x), (b, y), (c, z)]), Mapping::AddressAndPortDependent);
        assert_eq!(judge(&[(a, x), (c, y)]), Mapping::Dependent);
        let local = Some(x.parse().unwrap());
        assert_eq!(judge_mapping(local, &seen(&[(a, x)])), Mapping::None);
    }

    #[test]
    fn sequences_are_continued_and_nothing_else_is() {
        let (a, b, c) = ("192.0.2.1:3478", "192.0.2.1:3479", "192.0.2.2:3478");
        let predict = |list: &[(&str, &str)]| -> Vec<u16> {
            predict_ports(&seen(list), 3).iter().map(SocketAddr::port).collect()
        };
        let at = |port: u16| format!("203.0.113.2:{port}");
        let (p1, p2, p3) = (at(40001), at(40002), at(40004));
        assert_eq!(predict(&[(a, &p1), (b, &p2), (c, &p3)]), [40005, 40006, 40007]);
        assert_eq!(predict(&[(a, &p3), (b, &p2), (c, &p1)]), [40000, 39999, 39998]);
        assert!(predict(&[(a, &p1), (b, &p1), (c, &p1)]).is_empty());
        assert!(predict(&[(a, &at(13155)), (b, &at(49367)), (c, &at(50000))]).is_empty());
        assert!(predict(&[(a, &at(1030)), (b, &at(1020)), (c, &at(1010))]).is_empty());
        assert_eq!(predict(&[(a, &at(65533)), (b, &at(65534))]), [65535]);
        assert_eq!(predict(&[(a, &p1), (b, &p3)]), [40005, 40006, 40007], "one step may hold two");
    }

    #[test]
    fn preserved_ports_are_seen_as_such() {
        let list = seen(&[("192.0.2.1:3478", "203.0.113.2:5000")]);
        assert_eq!(judge_ports(Some(5000), &list), Ports::Preserved);
        assert_eq!(judge_ports(Some(6000), &list), Ports::Random);
        assert_eq!(judge_ports(None, &list), Ports::Unknown);
    }
}
