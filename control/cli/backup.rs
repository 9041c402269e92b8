//! `backup` and `restore`: a broker's whole state in one file.
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use switchback_control::broker::{self, Saved};
use switchback_control::{Code, Fault};

use crate::args::Global;
use crate::output::{self, human};
use crate::serve::default_data;

/// Save the broker's whole state into one file, while it runs.
///
/// Run it on the broker's machine, as the user that owns the data directory. The running broker is not held up, and what it
/// had acknowledged before is in the file. The file holds THE BROKER'S KEYS: who has it can pose as the broker and
/// open its grants. It is readable for its owner only; keep it so, and encrypt it before it leaves the machine.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback backup /var/backups/switchback-$(date +%F)
  switchback backup b && age -r age1... b > b.age && shred -u b")]
pub(crate) struct BackupArgs {
    /// File to make; it must not exist
    file: PathBuf,
    /// The broker's data directory [default: as of `switchback serve`]
    #[arg(long, value_name = "DIR", env = "SWITCHBACK_DATA")]
    data: Option<PathBuf>,
}

/// Make a data directory of a backup.
///
/// The directory must be empty or missing. A broker started on it, under the address that the old one had, is the same
/// broker to agents and users: their strings and keys go on to work, and sessions whose ends are still there resume. What
/// the old one did after the backup (tokens minted or revoked, grants) is not in it: look at `switchback token list`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback restore /var/backups/switchback-2026-11-23 --data /var/lib/switchback
  switchback restore b --data ./data && switchback serve --data ./data")]
pub(crate) struct RestoreArgs {
    /// A file made by `switchback backup`
    file: PathBuf,
    /// Directory to make
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
}

/// Runs `backup`.
pub(crate) async fn save(args: BackupArgs, global: &Global) -> Result<(), Fault> {
    let data = args.data.map_or_else(default_data, Ok)?;
    let to = args.file.clone();
    let saved = blocking(move || broker::backup(&data, &to)).await?;
    let file = args.file.display();
    if global.json {
        return output::json(&report(&args.file, &saved));
    }
    output::line(&format!(
        "saved {} into {file}: {}",
        human::bytes(saved.bytes),
        contents(&saved)
    ))?;
    output::note(&format!(
        "{file} holds the broker's keys. Who has it can pose as the broker: keep it closed, encrypt it before it travels."
    ));
    Ok(())
}

/// Runs `restore`.
pub(crate) async fn restore(args: RestoreArgs, global: &Global) -> Result<(), Fault> {
    let (from, data) = (args.file.clone(), args.data.clone());
    let saved = blocking(move || broker::restore(&from, &data)).await?;
    if global.json {
        return output::json(&report(&args.data, &saved));
    }
    let data = args.data.display();
    output::line(&format!(
        "restored {data}: {}\nnext: switchback serve --data {data}",
        contents(&saved)
    ))
}

fn report(path: &std::path::Path, saved: &Saved) -> serde_json::Value {
    let Saved { files, users, bytes } = saved;
    json!({ "path": path, "files": files, "users": users, "bytes": bytes })
}

fn contents(saved: &Saved) -> String {
    format!("the database with {} users, {}", saved.users, saved.files.join(", "))
}

async fn blocking(
    work: impl FnOnce() -> Result<Saved, Fault> + Send + 'static,
) -> Result<Saved, Fault> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Code::Internal.because(error.to_string())))
}
