//! Starting, starting again, and refusing to start.
use std::fs;
use std::net::TcpListener;

use rustls::pki_types::CertificateDer;

use super::support::*;
use crate::broker::{Broker, TlsFiles};
use crate::code::Code;
use crate::invite::{Invite, InviteKind};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn later_starts_keep_certificate_keys_and_tokens() {
    let temp = tempfile::tempdir().unwrap();
    let bench = Bench::first(temp.path()).await;
    let login = bench.broker.first_invites().unwrap().login.clone();
    let invite = Invite::parse(login.reveal(), InviteKind::Login).unwrap();
    assert_eq!(invite.url, format!("https://{}", bench.address));
    assert_eq!(invite.url, bench.broker.url());
    let before: Vec<_> =
        ["tls.crt", "seal.key"].map(|name| fs::read(temp.path().join(name)).unwrap()).into();
    let bench = bench.restart().await;
    let after: Vec<_> =
        ["tls.crt", "seal.key"].map(|name| fs::read(temp.path().join(name)).unwrap()).into();
    assert_eq!(before, after);
    assert_eq!(bench.get("/v1/whoami", &bench.admin).await.code(), None);
    bench.broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why() {
    let temp = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let data = |name: &str| temp.path().join(name);
    let refused = async |config| Broker::start(config).await.expect_err("refused").code;

    let mut occupied = config(&data("a"));
    occupied.listen = taken.local_addr().unwrap();
    assert_eq!(refused(occupied).await, Code::AddressInUse);

    let mut foreign = config(&data("a"));
    foreign.listen = "192.0.2.1:0".parse().unwrap();
    assert_eq!(refused(foreign).await, Code::AddressUnavailable);

    let mut nonsense = config(&data("a"));
    nonsense.public = Some("no host".into());
    assert_eq!(refused(nonsense).await, Code::ConfigInvalid);

    let mut uncertified = config(&data("a"));
    uncertified.tls = Some(TlsFiles { cert: data("none"), key: data("none") });
    assert_eq!(refused(uncertified).await, Code::CertificateUnusable);

    fs::write(data("file"), "").unwrap();
    assert_eq!(refused(config(&data("file"))).await, Code::DataDirUnusable);

    fs::create_dir(data("b")).unwrap();
    fs::write(data("b").join("broker.db"), "no database at all".repeat(300)).unwrap();
    assert_eq!(refused(config(&data("b"))).await, Code::DataCorrupt);

    fs::create_dir(data("c")).unwrap();
    fs::write(data("c").join("seal.key"), "short").unwrap();
    assert_eq!(refused(config(&data("c"))).await, Code::DataCorrupt);

    let running = Broker::start(config(&data("d"))).await.unwrap();
    assert_eq!(refused(config(&data("d"))).await, Code::DataDirUnusable, "one server a directory");
    running.shutdown().await;
    Broker::start(config(&data("d"))).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_on_epoll() {
    let temp = tempfile::tempdir().unwrap();
    let mut config = config(temp.path());
    config.io = switchback_engine::IoChoice::Epoll;
    let broker = Broker::start(config).await.unwrap();
    assert_eq!(broker.io_backend().0, "epoll");
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_broker_frees_its_port_and_its_data() {
    let temp = tempfile::tempdir().unwrap();
    let mut again = config(temp.path());
    let broker = Broker::start(config(temp.path())).await.unwrap();
    again.listen = broker.local_addr();
    drop(broker);
    let restarted = soon(async {
        loop {
            if let Ok(broker) = Broker::start(again.clone()).await {
                return broker;
            }
        }
    });
    restarted.await.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not() {
    let temp = tempfile::tempdir().unwrap();
    let files = TlsFiles { cert: temp.path().join("crt"), key: temp.path().join("key") };
    let key = rcgen::KeyPair::generate().unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    let renew = |day| {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, day);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(&files.cert, certificate.pem()).unwrap();
        certificate.der().clone()
    };
    let first = renew(1);
    let mut config = config(&temp.path().join("data"));
    config.tls = Some(files.clone());
    let broker = Broker::start(config).await.unwrap();
    let address = broker.local_addr();
    let served = async |expected: &CertificateDer<'static>| {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let shown =
            trusting(expected.clone()).connect("localhost".try_into().unwrap(), stream).await;
        shown.is_ok_and(|it| it.get_ref().1.peer_certificates().unwrap()[0] == *expected)
    };
    assert!(served(&first).await);
    let second = renew(2);
    broker.reload();
    eventually(async || served(&second).await).await;
    let third = renew(3);
    eventually(async || served(&third).await).await;
    fs::write(&files.cert, "-----BEGIN").unwrap();
    broker.reload();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(served(&third).await, "the last good one");
    broker.shutdown().await;
}
