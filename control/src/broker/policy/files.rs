//! Policy files: a file, or a directory whose `*.cedar` files are read in the order of their names.
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::code::{Code, Fault};
use crate::policy::{FILES_MAX, POLICY_BYTES_MAX, PolicyFile};

/// Reads them.
///
/// # Errors
/// [`Code::PolicyInvalid`] if there is none, or too much; what the system says if it cannot be read.
pub fn read_policies(path: &Path) -> Result<Vec<PolicyFile>, Fault> {
    read(path)
}

pub(super) fn read(path: &Path) -> Result<Vec<PolicyFile>, Fault> {
    let paths = list(path)?;
    if paths.is_empty() {
        return Err(Code::PolicyInvalid.because(format!("no *.cedar file in {}", path.display())));
    }
    let mut left = POLICY_BYTES_MAX as u64;
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let mut text = String::new();
        let file = File::open(&path).map_err(|error| failed(&path, &error))?;
        let read = file.take(left + 1).read_to_string(&mut text);
        let count = read.map_err(|error| failed(&path, &error))? as u64;
        left = left.checked_sub(count).ok_or_else(|| {
            let most = POLICY_BYTES_MAX / 1024;
            Code::PolicyInvalid.because(format!("the policies exceed {most} KiB"))
        })?;
        files.push(PolicyFile { name, text });
    }
    Ok(files)
}

fn list(path: &Path) -> Result<Vec<PathBuf>, Fault> {
    let about = fs::metadata(path).map_err(|error| failed(path, &error))?;
    if !about.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| failed(path, &error))? {
        let file = entry.map_err(|error| failed(path, &error))?.path();
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && file.extension().is_some_and(|it| it == "cedar") {
            found.push(file);
        }
        if found.len() > FILES_MAX {
            return Err(Code::PolicyInvalid.because(format!("more than {FILES_MAX} policy files")));
        }
    }
    found.sort();
    Ok(found)
}

fn failed(path: &Path, error: &std::io::Error) -> Fault {
    Code::PolicyInvalid.because(format!("{}: {error}", path.display()))
}

/// What changes when a file does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look(Vec<(PathBuf, u64, i64, i64, u64)>);

/// Looks without reading. What cannot be looked at looks like nothing, and reading it will say why.
pub(super) fn look(path: &Path) -> Look {
    let paths = list(path).unwrap_or_default();
    let seen = paths.into_iter().filter_map(|path| {
        let about = fs::metadata(&path).ok()?;
        Some((path, about.len(), about.mtime(), about.mtime_nsec(), about.ino()))
    });
    Look(seen.collect())
}
