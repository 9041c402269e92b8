//! What a watcher and a watched agent send each other, and files that are said to be recordings.
#![no_main]
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use switchback_control::shadow::frame::Decoder;
use switchback_control::shadow::{cast, pcap};

fuzz_target!(|bytes: &[u8]| {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    while let Ok(Some(frame)) = decoder.next_frame() {
        let mut again = BytesMut::new();
        frame.encode(&mut again);
        let mut second = Decoder::default();
        second.push(&again);
        // Data without bytes is no frame when it is written again.
        if !again.is_empty() {
            assert_eq!(second.next_frame(), Ok(Some(frame)));
        }
    }
    let _ = pcap::read(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = cast::read(text);
    }
});
