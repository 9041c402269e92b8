//! Fragmenting an IPv4 packet for a link that is too narrow (RFC 791, section 3.2).

use super::checksum;
use super::head::Head;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;

/// The packet in fragments of at most `mtu` bytes. `None` when routers may not fragment it: IPv6,
/// an IPv4 packet that forbids it, a malformed one, or one whose header leaves no room for 8 bytes.
pub fn fragment(packet: &[u8], mtu: u16) -> Option<Vec<Vec<u8>>> {
    let head = Head::parse(packet, 0, packet.len()).filter(|head| !head.v6)?;
    let field = u16::from_be_bytes([packet[6], packet[7]]);
    let (header, payload) = packet[..head.end].split_at(head.transport);
    let room = usize::from(mtu).checked_sub(header.len())? / 8 * 8;
    if field & DONT_FRAGMENT != 0 || room == 0 {
        return None;
    }
    let last = payload.len().div_ceil(room).saturating_sub(1);
    let parts = payload.chunks(room).enumerate().map(|(index, part)| {
        // A fragment may itself be fragmented: offsets add up, and only the last keeps the flag.
        let more = if index < last { MORE_FRAGMENTS } else { field & MORE_FRAGMENTS };
        let offset = (field & 0x1fff) + (index * room / 8) as u16;
        let mut fragment = header.to_vec();
        let total = (header.len() + part.len()) as u16;
        write(&mut fragment, 2, total);
        write(&mut fragment, 6, more | (offset & 0x1fff));
        fragment.extend(part);
        fragment
    });
    Some(parts.collect())
}

/// Writes a word of the header and corrects the header's checksum.
fn write(header: &mut [u8], at: usize, word: u16) {
    let before = u16::from_be_bytes([header[at], header[at + 1]]);
    header[at..at + 2].copy_from_slice(&word.to_be_bytes());
    checksum::update(header, 10, before, word);
}
