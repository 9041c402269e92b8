//! A real web server and a real web client.
use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::support::{Bed, Bytes, IOS, Output, Process, eventually, program};

#[test]
fn fifty_parallel_http_downloads_share_one_session() {
    const FILES: usize = 50;
    let (Some(nginx), Some(curl)) = (program("nginx"), program("curl")) else { return };
    for io in IOS {
        let mut bed = Bed::without_agent(io, None);
        let site = bed.home().join("site");
        fs::create_dir(&site).unwrap();
        let mut hashes = Vec::new();
        for number in 0..FILES {
            let mut content = vec![0; 100_000 + number * 20_011];
            Bytes::seeded(number as u64 + 1).fill(&mut content);
            hashes.push(Sha256::digest(&content));
            fs::write(site.join(number.to_string()), &content).unwrap();
        }
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let home = bed.home().display();
        let config = format!(
            "daemon off; user root; pid {home}/nginx.pid; error_log stderr; worker_processes 1;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;\n\
             fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;\n\
             server {{ listen {addr}; root {site}; }} }}\n",
            site = site.display()
        );
        fs::write(bed.home().join("nginx.conf"), config).unwrap();
        let _nginx =
            Process::start(Command::new(&nginx).arg("-c").arg(bed.home().join("nginx.conf")));
        eventually("nginx to listen", Duration::from_secs(10), || {
            std::net::TcpStream::connect(addr).ok()
        });
        bed.offer(&[format!("web=tcp:{addr}")]);

        let (_connect, local) = bed.forward("web");
        let got = bed.home().join("got");
        fs::create_dir(&got).unwrap();
        let mut client = Command::new(&curl);
        client.args([
            "-sS",
            "--fail",
            "--parallel",
            "--parallel-immediate",
            "--parallel-max",
            "50",
            "--max-time",
            "60",
        ]);
        for number in 0..FILES {
            client
                .arg("-o")
                .arg(got.join(number.to_string()))
                .arg(format!("http://{local}/{number}"));
        }
        Output::of(&mut client).ok();
        for (number, hash) in hashes.iter().enumerate() {
            let content = fs::read(got.join(number.to_string())).unwrap();
            assert_eq!(&Sha256::digest(&content), hash, "file {number} over {io:?}");
        }
        let sessions = bed.sessions();
        assert_eq!(sessions.len(), 1, "{sessions:?}");
        assert_eq!(sessions[0]["transport"], "TCP (Reverse-Connect)");
    }
}
