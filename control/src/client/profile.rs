//! Who the user is signed in as: the login string, kept where only its owner may read it.
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use etcetera::base_strategy::Xdg;

use crate::code::{Code, Fault};
use crate::invite::{Invite, InviteKind};

/// Environment variable that overrides the stored login string.
pub const LOGIN_VARIABLE: &str = "SWITCHBACK_LOGIN";

/// The login in force: `explicit`, else [`LOGIN_VARIABLE`], else the stored one.
///
/// # Errors
/// [`Code::NotLoggedIn`] if there is none, [`Code::InviteInvalid`] if it is damaged, [`Code::DataDirUnusable`] if it
/// cannot be read.
pub fn load(explicit: Option<&str>) -> Result<Invite, Fault> {
    let variable = std::env::var(LOGIN_VARIABLE).ok().filter(|text| !text.is_empty());
    match explicit.or(variable.as_deref()) {
        Some(text) => Invite::parse(text, InviteKind::Login),
        None => load_from(&path()?),
    }
}

/// Stores a login for this user, in place of any other, and says where.
///
/// # Errors
/// [`Code::DataDirUnusable`].
pub fn save(invite: &Invite) -> Result<PathBuf, Fault> {
    super::signin::remove()?;
    save_beside_signin(invite)
}

pub(super) fn save_beside_signin(invite: &Invite) -> Result<PathBuf, Fault> {
    let path = path()?;
    save_to(&path, invite).map_err(|error| unusable(&path, &error))?;
    Ok(path)
}

/// Forgets the stored login; false if there was none.
///
/// # Errors
/// [`Code::DataDirUnusable`].
pub fn remove() -> Result<bool, Fault> {
    super::signin::remove()?;
    let path = path()?;
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(unusable(&path, &error)),
    }
}

/// Where the login is stored: `$XDG_CONFIG_HOME/switchback/login`.
///
/// # Errors
/// [`Code::DataDirUnusable`] if this user has no home directory.
pub fn path() -> Result<PathBuf, Fault> {
    let base = Xdg::new().map_err(|error| Code::DataDirUnusable.because(error.to_string()))?;
    Ok(base.config_dir().join("switchback").join("login"))
}

fn load_from(path: &Path) -> Result<Invite, Fault> {
    match fs::read_to_string(path) {
        Ok(text) => Invite::parse(&text, InviteKind::Login),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Code::NotLoggedIn
                .because(format!("there is no login string in {}", path.display())))
        }
        Err(error) => Err(unusable(path, &error)),
    }
}

fn save_to(path: &Path, invite: &Invite) -> io::Result<()> {
    let mut text = invite.to_text().reveal().to_owned();
    text.push('\n');
    write_private(path, text.as_bytes())
}

/// Writes a file that only this user can read (0600, in a directory of 0700), whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    if !directory.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let draft = path.with_extension(format!("{:08x}.new", rand::random::<u32>()));
    let written = write_new(&draft, content).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

fn write_new(draft: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    // Whatever the umask took away or a file system ignored.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(content)?;
    file.sync_all()
}

fn unusable(path: &Path, error: &io::Error) -> Fault {
    Code::DataDirUnusable.because(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn invite(token: &str) -> Invite {
        Invite {
            kind: InviteKind::Login,
            url: "https://gate.example:443".into(),
            pin: "pin".into(),
            token: Secret::new(token),
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_login_is_readable_by_its_owner_alone_and_replaced_whole() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("switchback").join("login");
        save_to(&path, &invite("first")).unwrap();
        save_to(&path, &invite("second")).unwrap();
        assert_eq!(load_from(&path).unwrap(), invite("second"));
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn no_login_a_damaged_one_and_an_unreadable_place_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("login");
        assert_eq!(load_from(&path).unwrap_err().code, Code::NotLoggedIn);
        fs::write(&path, "sblogin1_%%%").unwrap();
        assert_eq!(load_from(&path).unwrap_err().code, Code::InviteInvalid);
        assert_eq!(load_from(root.path()).unwrap_err().code, Code::DataDirUnusable);
        assert!(save_to(&path.join("below/a/file"), &invite("t")).is_err());
    }

    #[test]
    fn an_explicit_login_comes_before_all_others() {
        let text = invite("explicit").to_text();
        assert_eq!(load(Some(text.reveal())).unwrap(), invite("explicit"));
    }
}
