//! Recordings for engineers: pcap with made-up IPv4 and TCP (or UDP) around the bytes, so that any analyser follows the
//! streams. Pure but for the writer it is given.
//!
//! The file format is libpcap's, version 2.4 in microseconds (<https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-03.html>),
//! link type 101 (raw IP). The client is 192.0.2.1 (RFC 5737), port 20000 + channel; the target is 192.0.2.2 with its port.
//! A channel begins with a handshake and ends with FINs; skipped bytes are a gap in the sequence numbers.
use std::collections::BTreeMap;
use std::io::{self, Write};

use super::Moment;
use super::frame::Direction;
use crate::wire::ResourceKind;

const MAGIC: u32 = 0xa1b2_c3d4;
const LINKTYPE_RAW: u32 = 101;
const CLIENT: [u8; 4] = [192, 0, 2, 1];
const TARGET: [u8; 4] = [192, 0, 2, 2];
/// Channel N has the client's port of this and N; after 40,000 channels ports are used again.
const PORT_BASE: u16 = 20_000;
const PORTS: u64 = 40_000;
/// Bytes of one segment: what a larger read becomes is several.
const SEGMENT: usize = 16 * 1024;
const IP_HEAD: usize = 20;
const UDP_HEAD: usize = 8;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// Writes a recording.
#[derive(Debug)]
pub struct PcapWriter<W> {
    out: W,
    kind: ResourceKind,
    port: u16,
    /// Next sequence numbers of open channels, of what goes to the target and to the client.
    channels: BTreeMap<u64, [u32; 2]>,
}

impl<W: Write> PcapWriter<W> {
    /// Begins a recording of a service of `kind` at `port`.
    ///
    /// # Errors
    /// The writer's.
    pub fn new(mut out: W, kind: ResourceKind, port: u16) -> io::Result<Self> {
        let mut head = Vec::with_capacity(24);
        head.extend_from_slice(&MAGIC.to_le_bytes());
        head.extend_from_slice(&2_u16.to_le_bytes());
        head.extend_from_slice(&4_u16.to_le_bytes());
        head.extend_from_slice(&[0; 8]);
        head.extend_from_slice(&65_535_u32.to_le_bytes());
        head.extend_from_slice(&LINKTYPE_RAW.to_le_bytes());
        out.write_all(&head)?;
        Ok(Self { out, kind, port: port.max(1), channels: BTreeMap::new() })
    }

    /// A channel is open.
    ///
    /// # Errors
    /// The writer's.
    pub fn opened(&mut self, at_us: u64, channel: u64) -> io::Result<()> {
        if self.channels.insert(channel, [0, 0]).is_some() || self.kind == ResourceKind::Udp {
            return Ok(());
        }
        self.segment(at_us, channel, (Direction::ToTarget, SYN), &[])?;
        self.segment(at_us, channel, (Direction::ToClient, SYN | ACK), &[])?;
        self.segment(at_us, channel, (Direction::ToTarget, ACK), &[])
    }

    /// Bytes passed.
    ///
    /// # Errors
    /// The writer's.
    pub fn data(
        &mut self,
        at_us: u64,
        channel: u64,
        direction: Direction,
        bytes: &[u8],
    ) -> io::Result<()> {
        if !self.channels.contains_key(&channel) {
            self.opened(at_us, channel)?;
        }
        for piece in bytes.chunks(SEGMENT) {
            self.segment(at_us, channel, (direction, PSH | ACK), piece)?;
        }
        Ok(())
    }

    /// Bytes passed that nobody saw.
    pub fn skipped(&mut self, channel: u64, direction: Direction, bytes: u64) {
        if let Some(next) = self.channels.get_mut(&channel) {
            // Sequence numbers are modulo 2^32 (RFC 9293 section 3.4).
            let gap = u32::try_from(bytes % (1 << 32)).unwrap_or_default();
            next[direction as usize] = next[direction as usize].wrapping_add(gap);
        }
    }

    /// A channel is closed.
    ///
    /// # Errors
    /// The writer's.
    pub fn closed(&mut self, at_us: u64, channel: u64) -> io::Result<()> {
        if self.kind == ResourceKind::Tcp && self.channels.contains_key(&channel) {
            self.segment(at_us, channel, (Direction::ToTarget, FIN | ACK), &[])?;
            self.segment(at_us, channel, (Direction::ToClient, FIN | ACK), &[])?;
            self.segment(at_us, channel, (Direction::ToTarget, ACK), &[])?;
        }
        self.channels.remove(&channel);
        Ok(())
    }

    /// Gives the writer back.
    ///
    /// # Errors
    /// The writer's.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }

    fn segment(
        &mut self,
        at_us: u64,
        channel: u64,
        (direction, flags): (Direction, u8),
        payload: &[u8],
    ) -> io::Result<()> {
        let near = PORT_BASE + u16::try_from(channel % PORTS).unwrap_or_default();
        let (ports, places) = match direction {
            Direction::ToTarget => ([near, self.port], [CLIENT, TARGET]),
            Direction::ToClient => ([self.port, near], [TARGET, CLIENT]),
        };
        let mut body = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
        let protocol = if self.kind == ResourceKind::Udp {
            let length = u16::try_from(UDP_HEAD + payload.len()).unwrap_or(u16::MAX);
            body.extend_from_slice(&length.to_be_bytes());
            // No checksum, which IPv4 permits (RFC 768).
            body.extend_from_slice(&[0, 0]);
            UDP
        } else {
            let next = self.channels.entry(channel).or_default();
            let (ours, theirs) = (direction as usize, 1 - direction as usize);
            body.extend_from_slice(&next[ours].to_be_bytes());
            let acknowledged = if flags & ACK == 0 { 0 } else { next[theirs] };
            body.extend_from_slice(&acknowledged.to_be_bytes());
            // Five words of header; the largest window; checksum and urgent pointer to come.
            body.extend_from_slice(&[5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
            let counts = u32::try_from(payload.len()).unwrap_or_default()
                + u32::from(flags & (SYN | FIN) != 0);
            next[ours] = next[ours].wrapping_add(counts);
            TCP
        };
        body.extend_from_slice(payload);
        if protocol == TCP {
            let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
            let pseudo = [&places[0][..], &places[1], &[0, TCP], &length.to_be_bytes()].concat();
            let sum = checksum(&[&pseudo, &body]);
            body[16..18].copy_from_slice(&sum.to_be_bytes());
        }
        self.packet(at_us, places, protocol, &body)
    }

    fn packet(
        &mut self,
        at_us: u64,
        [from, to]: [[u8; 4]; 2],
        protocol: u8,
        body: &[u8],
    ) -> io::Result<()> {
        let length = u16::try_from(IP_HEAD + body.len()).unwrap_or(u16::MAX);
        // Version 4, five words; do not fragment; 64 hops.
        let mut head = vec![0x45, 0];
        head.extend_from_slice(&length.to_be_bytes());
        head.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
        head.extend_from_slice(&from);
        head.extend_from_slice(&to);
        let sum = checksum(&[&head]);
        head[10..12].copy_from_slice(&sum.to_be_bytes());
        let seconds = u32::try_from(at_us / 1_000_000).unwrap_or(u32::MAX);
        let micros = u32::try_from(at_us % 1_000_000).unwrap_or_default();
        for word in [seconds, micros, u32::from(length), u32::from(length)] {
            self.out.write_all(&word.to_le_bytes())?;
        }
        self.out.write_all(&head)?;
        self.out.write_all(body)
    }
}

/// The Internet checksum (RFC 1071) of parts of which all but the last are of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        let (words, rest) = part.as_chunks::<2>();
        sum += words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>();
        sum += rest.first().map_or(0, |last| u64::from(*last) << 8);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// Whether a file is one.
#[must_use]
pub fn is_pcap(file: &[u8]) -> bool {
    file.first_chunk().is_some_and(|magic| u32::from_le_bytes(*magic) == MAGIC)
}

/// Reads a recording of ours.
///
/// # Errors
/// What is wrong.
pub fn read(file: &[u8]) -> Result<Vec<Moment>, String> {
    let header = file.first_chunk::<24>().ok_or("the file is too short")?;
    if !is_pcap(file) || header[20..24] != LINKTYPE_RAW.to_le_bytes() {
        return Err("this is no pcap file of raw IP in microseconds".into());
    }
    let mut rest = &file[24..];
    let mut moments = Vec::new();
    while !rest.is_empty() {
        let (record, behind) = rest.split_first_chunk::<16>().ok_or("a record is cut short")?;
        let word = |at: usize| {
            let bytes = record[at..at + 4].first_chunk::<4>().copied().unwrap_or_default();
            u32::from_le_bytes(bytes)
        };
        let length = usize::try_from(word(8)).unwrap_or(usize::MAX);
        let (packet, behind) = behind.split_at_checked(length).ok_or("a packet is cut short")?;
        rest = behind;
        let at_us = u64::from(word(0)) * 1_000_000 + u64::from(word(4));
        moments.extend(moment(at_us, packet));
    }
    Ok(moments)
}

/// What a packet brought, if it is one of ours and brought something.
fn moment(at_us: u64, packet: &[u8]) -> Option<Moment> {
    let (head, body) = packet.split_first_chunk::<IP_HEAD>()?;
    let header = match head[9] {
        TCP => usize::from(*body.get(12)? >> 4) * 4,
        UDP => UDP_HEAD,
        _ => return None,
    };
    let to_target = head[12..16] == CLIENT;
    let port = body.get(if to_target { 0..2 } else { 2..4 })?.first_chunk::<2>()?;
    let channel = u64::from(u16::from_be_bytes(*port).checked_sub(PORT_BASE)?);
    let bytes = body.get(header.max(UDP_HEAD)..)?.to_vec();
    let direction = if to_target { Direction::ToTarget } else { Direction::ToClient };
    (!bytes.is_empty()).then_some(Moment { at_us, channel, direction, bytes })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(pieces: &[(u64, bool, Vec<u8>)], kind: ResourceKind) -> Vec<u8> {
        let mut pcap = PcapWriter::new(Vec::new(), kind, 22).unwrap();
        for (at, (channel, to_client, bytes)) in pieces.iter().enumerate() {
            let direction = if *to_client { Direction::ToClient } else { Direction::ToTarget };
            pcap.data(1_800_000_000_000_000 + at as u64, *channel, direction, bytes).unwrap();
        }
        pcap.finish().unwrap()
    }

    proptest! {
        #[test]
        fn a_recording_parses_back_to_the_same_streams(
            pieces in proptest::collection::vec(
                (1..4_u64, any::<bool>(), proptest::collection::vec(any::<u8>(), 1..60)), 1..30),
            udp in any::<bool>(),
        ) {
            let kind = if udp { ResourceKind::Udp } else { ResourceKind::Tcp };
            let moments = read(&record(&pieces, kind)).unwrap();
            let found: Vec<_> = moments
                .into_iter()
                .map(|moment| (moment.channel, moment.direction == Direction::ToClient, moment.bytes))
                .collect();
            prop_assert_eq!(found, pieces);
        }

        #[test]
        fn any_file_is_read_or_refused(
            mut file in proptest::collection::vec(any::<u8>(), 0..200), ours in any::<bool>(),
        ) {
            if ours {
                let mut whole = record(&[(1, true, vec![1, 2, 3])], ResourceKind::Tcp);
                whole.append(&mut file);
                file = whole;
            }
            let _ = read(&file);
        }
    }

    #[test]
    fn packets_have_good_checksums_and_sequence_numbers_without_gaps_but_for_what_was_skipped() {
        let mut pcap = PcapWriter::new(Vec::new(), ResourceKind::Tcp, 22).unwrap();
        pcap.opened(1, 1).unwrap();
        pcap.data(2, 1, Direction::ToClient, b"abc").unwrap();
        pcap.skipped(1, Direction::ToClient, 1000);
        pcap.data(3, 1, Direction::ToClient, b"d").unwrap();
        pcap.closed(4, 1).unwrap();
        let file = pcap.finish().unwrap();
        let (mut rest, mut sequences) = (&file[24..], Vec::new());
        while !rest.is_empty() {
            let length = u32::from_le_bytes(*rest[8..].first_chunk().unwrap()) as usize;
            let packet = &rest[16..16 + length];
            let (ip, tcp) = packet.split_at(IP_HEAD);
            assert_eq!(checksum(&[ip]), 0);
            let pseudo =
                [&ip[12..20], &[0, TCP], &u16::try_from(tcp.len()).unwrap().to_be_bytes()].concat();
            assert_eq!(checksum(&[&pseudo, tcp]), 0);
            if ip[12..16] == TARGET {
                sequences.push(u32::from_be_bytes(*tcp[4..].first_chunk().unwrap()));
            }
            rest = &rest[16 + length..];
        }
        assert_eq!(sequences, [0, 1, 1004, 1005]);
    }
}
