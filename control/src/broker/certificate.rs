//! The operator's certificate, looked at while the broker runs: a renewed one is used from the next handshake on.
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::time::sleep;

use crate::api::{EventKind, EventView};
use crate::broker::app::App;
use crate::broker::events::about;
use crate::broker::identity::{Identity, TlsFiles};
use crate::code::{Code, Fault};

/// How often the files are looked at. Two looks must find the same, since a pair is written in two steps.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What the broker proves itself with now.
#[derive(Debug)]
pub(crate) struct Certificate(RwLock<Arc<CertifiedKey>>);

impl Certificate {
    pub(crate) fn new(certified: Arc<CertifiedKey>) -> Self {
        Self(RwLock::new(certified))
    }

    pub(crate) fn now(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, certified: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }
}

/// What tells one content of the files from another without reading them.
type Stamp = [Option<(u64, u64, i64, i64)>; 2];

fn stamp(files: &TlsFiles) -> Stamp {
    let of = |path: &PathBuf| {
        let found = fs::metadata(path).ok()?;
        Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    };
    [of(&files.cert), of(&files.key)]
}

/// Looks at the files every two seconds, and at once when asked (SIGHUP), until the broker ends.
pub(crate) async fn watch(app: Arc<App>, files: TlsFiles, used: Arc<Certificate>) {
    let mut asked = app.reload.subscribe();
    let (mut judged, mut last) = (stamp(&files), stamp(&files));
    loop {
        let at_once = tokio::select! {
            () = app.stop.cancelled() => return,
            () = sleep(LOOK_EVERY) => false,
            () = asked.wait() => true,
        };
        let found = stamp(&files);
        let rests = std::mem::replace(&mut last, found) == found;
        if at_once || (rests && found != judged) {
            judged = found;
            reload(&app, &files, &used).await;
        }
    }
}

async fn reload(app: &App, files: &TlsFiles, used: &Certificate) {
    let (reading, pin) = (files.clone(), app.pin.clone());
    let read = tokio::task::spawn_blocking(move || read(&reading, &pin)).await;
    match read.unwrap_or_else(|error| Err(Code::Internal.because(error.to_string()))) {
        Ok(certified) if certified.cert == used.now().cert => {}
        Ok(certified) => {
            used.replace(certified);
            app.counters.certificates_reloaded.add();
            tracing::info!(cert = %files.cert.display(), "using the renewed certificate");
            app.hub.bus.publish(about(EventKind::CertificateReloaded));
        }
        Err(fault) => {
            app.counters.certificates_refused.add();
            tracing::error!(%fault, "the certificate files hold nothing usable, using the one before");
            let (code, detail) = (Some(fault.code), Some(fault.detail));
            let refused = EventView { code, detail, ..about(EventKind::CertificateRefused) };
            app.hub.bus.publish(refused);
        }
    }
}

/// The pair in the files, if its key is the one that all join and login strings name.
fn read(files: &TlsFiles, pin: &str) -> Result<Arc<CertifiedKey>, Fault> {
    let found = Identity::of_files(files)?;
    if found.pin != pin {
        return Err(Code::CertificateUnusable.because(format!(
            "{} is another key than every join and login string names: renew the certificate with the same key (certbot: \
             --reuse-key), or restart the broker and hand out new strings",
            files.key.display()
        )));
    }
    Ok(found.certificate.now())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a certificate for this name with this key.
    fn renew(files: &TlsFiles, key: &rcgen::KeyPair, name: &str) {
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        fs::write(&files.cert, params.self_signed(key).unwrap().pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_renewed_certificate_with_the_same_key_is_taken_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let files = TlsFiles { cert: temp.path().join("crt"), key: temp.path().join("key") };
        let key = rcgen::KeyPair::generate().unwrap();
        renew(&files, &key, "one.example");
        let before = stamp(&files);
        let identity = Identity::of_files(&files).unwrap();
        let first = identity.certificate.now();
        renew(&files, &key, "a.longer.name.example");
        assert_ne!(stamp(&files), before);
        let second = read(&files, &identity.pin).unwrap();
        assert_ne!(second.cert, first.cert);
        identity.certificate.replace(second.clone());
        assert_eq!(identity.certificate.now().cert, second.cert);
        renew(&files, &rcgen::KeyPair::generate().unwrap(), "one.example");
        let fault = read(&files, &identity.pin).unwrap_err();
        assert!(fault.detail.contains("--reuse-key"), "{fault}");
        fs::write(&files.cert, "half a certif").unwrap();
        assert_eq!(read(&files, &identity.pin).unwrap_err().code, Code::CertificateUnusable);
        fs::remove_file(&files.cert).unwrap();
        assert_eq!(read(&files, &identity.pin).unwrap_err().code, Code::CertificateUnusable);
    }
}
