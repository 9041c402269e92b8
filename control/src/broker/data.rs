//! The data directory: private to its owner, used by one server at a time, and whole.
//!
//! | file | holds |
//! |---|---|
//! | `lock` | nothing; locked while a server runs |
//! | `broker.db` | users, tokens, agents, resources, grants |
//! | `seal.key` | 32 bytes that seal grants |
//! | `tls.crt`, `tls.key` | the broker's own certificate and its key, PEM |
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::code::{Code, Fault};

/// Largest file read whole. A certificate chain is a few KiB; this only keeps a wrong path from filling memory.
pub(crate) const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// An opened data directory; the lock is held until it is dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the directory if needed, makes it private, and locks it.
    ///
    /// # Errors
    /// [`Code::DataDirUnusable`]: not creatable, not writable, or another server uses it.
    pub(crate) fn open(path: &Path) -> Result<Self, Fault> {
        let unusable = |error: &io::Error| unusable(path, error);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| unusable(&e))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|e| unusable(&e))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(|e| unusable(&e))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
            if errno == rustix::io::Errno::WOULDBLOCK {
                Code::DataDirUnusable
                    .because(format!("another server uses {} already", path.display()))
            } else {
                unusable(&errno.into())
            }
        })?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A file's content; `None` if there is none.
    ///
    /// # Errors
    /// [`Code::DataDirUnusable`] if it cannot be read.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Fault> {
        let path = self.file(name);
        match read_bounded(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unusable(&path, &error)),
        }
    }

    /// A file's length in bytes; `None` if there is none.
    ///
    /// # Errors
    /// [`Code::DataDirUnusable`] if it cannot be told.
    pub(crate) fn read_len(&self, name: &str) -> Result<Option<u64>, Fault> {
        let path = self.file(name);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unusable(&path, &error)),
        }
    }

    /// Creates a private file, whole or not at all: a crash leaves no half of a key.
    ///
    /// # Errors
    /// [`Code::DataDirUnusable`] if it cannot be written.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<(), Fault> {
        let path = self.file(name);
        let half = self.file(&format!("{name}.new"));
        let write = || {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&half)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&half, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|error| unusable(&path, &error))
    }
}

/// Reads a file of at most [`FILE_BYTES_MAX`].
pub(crate) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is far too large"));
    }
    Ok(bytes)
}

fn unusable(path: &Path, error: &io::Error) -> Fault {
    Code::DataDirUnusable.because(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_and_its_files_are_private() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("data");
        let data = DataDir::open(&path).unwrap();
        data.write("seal.key", b"secret").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&data.file("seal.key")), 0o600);
        assert_eq!(data.read("seal.key").unwrap().as_deref(), Some(&b"secret"[..]));
        assert_eq!(data.read("nothing").unwrap(), None);
    }

    #[test]
    fn two_servers_never_share_a_directory() {
        let temp = tempfile::tempdir().unwrap();
        let first = DataDir::open(temp.path()).unwrap();
        let fault = DataDir::open(temp.path()).unwrap_err();
        assert_eq!(fault.code, Code::DataDirUnusable);
        assert!(fault.detail.contains("another server"));
        drop(first);
        DataDir::open(temp.path()).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("data")] {
            assert_eq!(DataDir::open(&path).unwrap_err().code, Code::DataDirUnusable);
        }
    }
}
