//! The lab on real namespaces.
use std::time::{Duration, Instant};
use switchback_bench::lab::{self, Lab, probe};

#[test]
fn smoke() {
    if lab::skip(lab::unavailable()) { return; }
    let t = Instant::now();
    let lab = Lab::start(&"pair:client-nat=symmetric".parse().unwrap(), 1).unwrap();
    println!("up {:?}", t.elapsed());
    let b = probe::behaviour(&lab, "client", "server", Duration::from_millis(100)).unwrap();
    println!("{b:?}");
    let o = lab.host("client").command("ping").args(["-c3", "-i0.2", "192.0.2.1"]).output().unwrap();
    println!("{}", String::from_utf8_lossy(&o.stdout));
    lab.link("client").set("delay=20ms").unwrap();
    let a = probe::socket(lab.host("client"), ([0,0,0,0],0)).unwrap();
    let s = probe::socket(lab.host("server"), ([192,0,2,1],5000)).unwrap();
    let d = probe::delays(&a, &s, 200, Duration::from_millis(2)).unwrap();
    println!("n {} median {:?} max {:?}", d.len(), d[d.len()/2], d.last());
    println!("{}", serde_json::to_string_pretty(&lab.status()).unwrap());
    let t = Instant::now();
    drop(lab);
    println!("down {:?}", t.elapsed());
}
