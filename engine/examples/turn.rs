//! STUN and TURN alone, for stock clients and for measurements.
//!
//! ```text
//! cargo run --release -p switchback-engine --example turn -- ADDRESS SECRET [ALLOWED_NETWORK/PREFIX]
//! ```
//!
//! Serves with one worker until its input ends, then prints what it did. A username is `EXPIRY_UNIX_SECONDS:NAME`, and
//! `turnutils_uclient -W SECRET -u NAME` mints it and its password itself. A client on this machine needs
//! `127.0.0.0/8` allowed.
use std::error::Error;
use std::io::Read;
use std::sync::Arc;

use switchback_engine::{Network, SharedSecret, UdpConfig, UdpService, UdpSockets, bind_udp};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, secret, allowed @ ..] = arguments.as_slice() else {
        return Err("usage: turn ADDRESS SECRET [ALLOWED_NETWORK/PREFIX]".into());
    };
    let network = |text: &String| -> Result<Network, Box<dyn Error>> {
        let (address, prefix) = text.split_once('/').ok_or("a network is ADDRESS/PREFIX")?;
        Ok(Network { address: address.parse()?, prefix: prefix.parse()? })
    };
    let config = UdpConfig {
        allowed_peers: allowed.iter().map(network).collect::<Result<_, _>>()?,
        // Load generators are one source and one user.
        allocations_per_user: 8192,
        allocations_per_name: 8192,
        answers_per_s: 100_000,
        answers_burst: 100_000,
        ..UdpConfig::default()
    };
    let sockets = UdpSockets { primary: bind_udp(address.parse()?, 1)?, alternate: Vec::new() };
    let service =
        UdpService::start(sockets, config, Arc::new(SharedSecret::new(secret.as_bytes())))?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    println!("{:#?}", service.metrics());
    service.shutdown();
    Ok(())
}
