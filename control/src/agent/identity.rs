//! The key that sessions are proved with: made on the first run, kept where only the agent can read it.
//!
//! Clients pin it for as long as a session lives, so it is another than the enrolment's, which changes.
use std::fs;
use std::io;
use std::path::Path;

use switchback_shortpath::SessionKey;

use crate::client::profile::write_private;
use crate::code::{Code, Fault};

const KEY_FILE: &str = "agent.key";

/// Reads the key in `state_dir`, or makes one.
///
/// # Errors
/// [`Code::DataDirUnusable`] if the directory cannot be read or written; [`Code::DataCorrupt`] if the key is damaged.
pub(super) fn load(state_dir: &Path) -> Result<SessionKey, Fault> {
    let path = state_dir.join(KEY_FILE);
    let unusable =
        |error: io::Error| Code::DataDirUnusable.because(format!("{}: {error}", path.display()));
    match fs::read(&path) {
        Ok(der) => SessionKey::from_pkcs8(&der)
            .map_err(|error| Code::DataCorrupt.because(format!("{}: {error}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = SessionKey::generate()
                .map_err(|error| Code::Internal.because(error.to_string()))?;
            write_private(&path, &key.to_pkcs8()).map_err(unusable)?;
            Ok(key)
        }
        Err(error) => Err(unusable(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_is_private() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("agent");
        let first = load(&state).unwrap();
        assert_eq!(load(&state).unwrap().public(), first.public());
        let mode = fs::metadata(state.join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_and_an_unusable_directory_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(KEY_FILE), b"not a key").unwrap();
        assert_eq!(load(root.path()).unwrap_err().code, Code::DataCorrupt);
        let file = root.path().join(KEY_FILE);
        assert_eq!(load(&file).unwrap_err().code, Code::DataDirUnusable);
    }
}
