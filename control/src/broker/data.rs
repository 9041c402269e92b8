//! The data directory: private to its owner, used by one server at a time, and whole.
//!
//! | file | holds |
//! |---|---|
//! | `lock` | nothing; locked while a server runs |
//! | `takeover.sock` | where a new process asks the server for its sockets |
//! | `broker.db` | users, tokens, agents, resources, grants |
//! | `audit.jsonl` | decisions, a line each; older ones in `audit.jsonl.1` and on |
//! | `seal.key` | 32 bytes that seal grants |
//! | `tls.crt`, `tls.key` | the broker's own certificate and its key, PEM |
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::code::{Code, Fault};

/// Largest file read whole. A certificate chain is a few KiB; this only keeps a wrong path from filling memory.
pub(crate) const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// An opened data directory. Whoever serves from it or changes what is there holds its [`DataLock`] as well; a process
/// that prepares to take over from the holder only reads.
#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
}

/// The right to serve from a data directory, until it is dropped. It may be handed to another process: the lock belongs
/// to the open file (flock(2)), so it is free only when all that hold that file have closed it.
#[derive(Debug)]
pub(crate) struct DataLock(File);

impl DataDir {
    /// Creates the directory if needed, and makes it private.
    ///
    /// # Errors
    /// [`Code::DataDirUnusable`]: not creatable or not writable.
    pub(crate) fn open(path: &Path) -> Result<Self, Fault> {
        let unusable = |error: &io::Error| unusable(path, error);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| unusable(&e))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|e| unusable(&e))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Takes the lock.
    ///
    /// # Errors
    /// [`Code::DataDirUnusable`] if another server holds it, or the file cannot be made.
    pub(crate) fn lock(&self) -> Result<DataLock, Fault> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.file("lock"))
            .map_err(|error| unusable(&self.path, &error))?;
        self.hold(file)
    }

    /// Goes on holding a lock that its holder handed over.
    ///
    /// # Errors
    /// [`Code::DataDirUnusable`] if it was none.
    pub(crate) fn inherit_lock(&self, file: OwnedFd) -> Result<DataLock, Fault> {
        self.hold(file.into())
    }

    fn hold(&self, file: File) -> Result<DataLock, Fault> {
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
            if errno == rustix::io::Errno::WOULDBLOCK {
                Code::DataDirUnusable
                    .because(format!("another server uses {} already", self.path.display()))
            } else {
                unusable(&self.path, &errno.into())
            }
        })?;
        Ok(DataLock(file))
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

impl AsFd for DataLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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
        let data = DataDir::open(temp.path()).unwrap();
        let first = data.lock().unwrap();
        let fault = data.lock().unwrap_err();
        assert_eq!(fault.code, Code::DataDirUnusable);
        assert!(fault.detail.contains("another server"));
        drop(first);
        data.lock().unwrap();
    }

    #[test]
    fn a_lock_that_is_handed_over_is_never_free_in_between() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::open(temp.path()).unwrap();
        let old = data.lock().unwrap();
        let handed = old.as_fd().try_clone_to_owned().unwrap();
        let new = data.inherit_lock(handed).unwrap();
        drop(old);
        assert_eq!(data.lock().unwrap_err().code, Code::DataDirUnusable);
        drop(new);
        let held = data.lock().unwrap();
        let stranger = File::create(temp.path().join("lock")).unwrap();
        assert!(data.inherit_lock(stranger.into()).is_err(), "a file that holds no lock is none");
        drop(held);
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
