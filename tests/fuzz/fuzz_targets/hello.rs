//! The first bytes of any connection to the gateway's port.
#![no_main]
use libfuzzer_sys::fuzz_target;
use switchback_engine::hello::{self, Parsed};

fuzz_target!(|bytes: &[u8]| {
    let whole = hello::parse(bytes);
    // Bytes arrive in pieces: a verdict on a prefix never changes when more bytes follow.
    for end in [bytes.len() / 3, bytes.len() * 2 / 3] {
        match hello::parse(&bytes[..end]) {
            Ok(Parsed::Incomplete { .. }) => {}
            settled => assert_eq!(settled, whole),
        }
    }
    if let Ok(Parsed::Complete(hello)) = whole
        && let Some(name) = hello.server_name.filter(|name| name.len() <= 255)
    {
        let again = hello::encode(&name, [7; 96]);
        let Ok(Parsed::Complete(parsed)) = hello::parse(&again) else { panic!("our own hello parses") };
        assert_eq!(parsed.server_name.as_deref(), Some(&*name));
    }
});
