//! A broker's whole state in one file, made while it runs, and a data directory made of that file.
//!
//! The file is a SQLite database: the broker's own, and beside its tables one more (`backup_files`) with the other files of
//! the data directory, keys among them. So one format, one integrity check and one version rule serve both ways.
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, backup::Backup, params};

use super::{BUSY_TIMEOUT, DATABASE_FILE, schema};
use crate::broker::audit::AUDIT_FILE;
use crate::broker::data::{DataDir, read_bounded};
use crate::code::{Code, Fault};

/// What belongs to a running process, to SQLite's log, whose content comes with the database, or to the audit trail, of which
/// the database has the latest records and which only grows.
const LEFT_OUT: [&str; 5] =
    ["lock", "takeover.sock", "broker.db", "broker.db-wal", "broker.db-shm"];
/// Files of a data directory, far more than there are.
const FILES_MAX: usize = 256;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Names of the files beside the database, keys among them.
    pub files: Vec<String>,
    /// Users in the database.
    pub users: u64,
    /// Bytes of the backup.
    pub bytes: u64,
}

/// Saves the data directory `data` into the new file `to` (mode 0600), as it is at one moment. A broker may be running; it
/// is not held up: SQLite's log lets it write while we read.
///
/// # Errors
/// [`Code::UsageInvalid`] if `to` exists; [`Code::DataDirUnusable`] if there is no broker's data, or the file cannot be
/// written; [`Code::DataCorrupt`]. Then nothing is left behind.
pub fn backup(data: &Path, to: &Path) -> Result<Saved, Fault> {
    if to.exists() {
        return Err(Code::UsageInvalid.because(format!("{} exists already", to.display())));
    }
    let half = half_of(to);
    let saved = write_backup(data, &half).and_then(|saved| {
        let placed = File::open(&half).and_then(|file| file.sync_all());
        placed.and_then(|()| fs::rename(&half, to)).map_err(|error| failed(to, &error))?;
        Ok(saved)
    });
    if saved.is_err() {
        let _ = fs::remove_file(&half);
    }
    saved
}

fn write_backup(data: &Path, half: &Path) -> Result<Saved, Fault> {
    let source_path = data.join(DATABASE_FILE);
    if !source_path.is_file() {
        return Err(Code::DataDirUnusable.because(format!("{} holds no broker", data.display())));
    }
    // A backup that broke off may be there; nobody else writes under this name.
    let mut private = OpenOptions::new();
    private.create(true).truncate(true).write(true).mode(0o600);
    private.open(half).map_err(|error| failed(half, &error))?;
    let source = open(&source_path)?;
    schema::check(&source)?;
    let mut copy = open(half)?;
    copy_whole(&source, &mut copy)?;
    drop(source);
    let files = beside(data)?;
    let names = files.iter().map(|(name, _)| name.clone()).collect();
    let users = (|| {
        // One file, without a log beside it.
        copy.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
        let step = copy.transaction()?;
        step.execute_batch(
            "CREATE TABLE backup_files (name TEXT PRIMARY KEY, content BLOB NOT NULL) STRICT;",
        )?;
        for (name, content) in &files {
            step.execute("INSERT INTO backup_files VALUES (?1, ?2)", params![name, content])?;
        }
        let users: i64 = step.query_row("SELECT count(*) FROM users", [], |row| row.get(0))?;
        step.commit()?;
        Ok(u64::try_from(users).unwrap_or_default())
    })()
    .map_err(|error| schema::fault(&error))?;
    copy.close().map_err(|(_, error)| schema::fault(&error))?;
    let bytes = fs::metadata(half).map_err(|error| failed(half, &error))?.len();
    Ok(Saved { files: names, users, bytes })
}

/// Makes the data directory `data` of the backup `from`. Nothing may be there yet, or an empty directory.
///
/// # Errors
/// [`Code::UsageInvalid`] if something is there; [`Code::DataCorrupt`] if `from` is no whole backup, or one of a newer
/// version; [`Code::DataDirUnusable`]. Then nothing is left behind.
pub fn restore(from: &Path, data: &Path) -> Result<Saved, Fault> {
    let occupied = fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some());
    if occupied || (data.exists() && !data.is_dir()) {
        let text = format!("{} is not an empty directory", data.display());
        return Err(Code::UsageInvalid.because(text));
    }
    let half = half_of(data);
    if half.exists() {
        let text = format!("{} is left of a restore that broke off; remove it", half.display());
        return Err(Code::UsageInvalid.because(text));
    }
    let restored = write_data(from, &half).and_then(|saved| {
        fs::rename(&half, data).map_err(|error| failed(data, &error))?;
        Ok(saved)
    });
    if restored.is_err() {
        let _ = fs::remove_dir_all(&half);
    }
    restored
}

fn write_data(from: &Path, half: &Path) -> Result<Saved, Fault> {
    let bytes = fs::metadata(from).map_err(|error| failed(from, &error))?.len();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let saved = Connection::open_with_flags(from, flags).map_err(|error| schema::fault(&error))?;
    schema::verify(&saved)?;
    let files = files_of(&saved).map_err(|error| {
        Code::DataCorrupt.because(format!("{} is no backup: {error}", from.display()))
    })?;
    let parent = half.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or(Ok(()), fs::create_dir_all).map_err(|error| failed(half, &error))?;
    let data = DataDir::open(half)?;
    for (name, content) in &files {
        if !is_file_name(name) {
            return Err(Code::DataCorrupt.because("the backup names a file outside"));
        }
        data.write(name, content)?;
    }
    data.write(DATABASE_FILE, b"")?;
    let mut copy = open(&data.file(DATABASE_FILE))?;
    copy_whole(&saved, &mut copy)?;
    let finish = copy.execute_batch("DROP TABLE backup_files; VACUUM;");
    let users =
        finish.and_then(|()| copy.query_row("SELECT count(*) FROM users", [], |row| row.get(0)));
    let users: i64 = users.map_err(|error| schema::fault(&error))?;
    copy.close().map_err(|(_, error)| schema::fault(&error))?;
    let files = files.into_iter().map(|(name, _)| name).collect();
    Ok(Saved { files, users: u64::try_from(users).unwrap_or_default(), bytes })
}

/// All pages in one step: one read transaction, so one moment. In steps, each write of the broker would start it anew.
fn copy_whole(source: &Connection, copy: &mut Connection) -> Result<(), Fault> {
    let copied = Backup::new(source, copy).and_then(|backup| backup.step(-1));
    copied.map(drop).map_err(|error| schema::fault(&error))
}

fn open(path: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)
        .and_then(|db| db.busy_timeout(BUSY_TIMEOUT).map(|()| db));
    db.map_err(|error| schema::fault(&error))
}

/// The data directory's files that the database does not hold.
fn beside(data: &Path) -> Result<Vec<(String, Vec<u8>)>, Fault> {
    let mut files = Vec::new();
    for entry in fs::read_dir(data).map_err(|error| failed(data, &error))? {
        let path = entry.map_err(|error| failed(data, &error))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let wanted = is_file_name(name)
            && !LEFT_OUT.contains(&name)
            && !name.starts_with(AUDIT_FILE)
            && !name.ends_with(".new");
        if !wanted || !path.is_file() {
            continue;
        }
        if files.len() == FILES_MAX {
            return Err(Code::DataDirUnusable.because("the data directory holds too many files"));
        }
        let content = read_bounded(&path).map_err(|error| failed(&path, &error))?;
        files.push((name.to_owned(), content));
    }
    files.sort();
    Ok(files)
}

fn files_of(saved: &Connection) -> rusqlite::Result<Vec<(String, Vec<u8>)>> {
    let mut query =
        saved.prepare("SELECT name, content FROM backup_files ORDER BY name LIMIT 256")?;
    query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

/// Beside it, so that a rename is enough.
fn half_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

fn failed(path: &Path, error: &std::io::Error) -> Fault {
    Code::DataDirUnusable.because(format!("{}: {error}", path.display()))
}
