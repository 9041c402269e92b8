//! Where a report goes: the terminal, files, or a directory with everything.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::{CompareReport, hgrm, html, text};
use crate::commands::{write_json, write_text};
use crate::compare::timings::Timing;

/// Flags that name what to write. Without any, tables are printed.
#[derive(Args, Debug)]
pub(crate) struct Targets {
    /// Write the report as JSON (schema/compare-1.json); `-` prints it instead of the tables
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write one self-contained page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write percentile files for HdrHistogram plotters: SCENARIO.PEER.WHAT.hgrm
    #[arg(long, value_name = "DIR")]
    hgrm: Option<PathBuf>,
    /// Write the report as markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write all of them: report.json, report.html, report.md and the percentile files
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Targets {
    /// Makes every directory that is written to, so that a run does not end with nowhere to write.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub(crate) fn prepare(&self) -> Result<()> {
        let files = [&self.json, &self.html, &self.markdown].into_iter().flatten();
        let parents = files.filter_map(|file| file.parent().map(Path::to_path_buf));
        let dirs = self.out.iter().chain(&self.hgrm).cloned().chain(parents);
        for dir in dirs.filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        }
        Ok(())
    }

    /// The file of one kind, by its own flag and in the directory.
    fn files(&self, flag: Option<&PathBuf>, name: &str) -> Vec<PathBuf> {
        flag.cloned().into_iter().chain(self.out.iter().map(|dir| dir.join(name))).collect()
    }
}

/// Writes the report wherever `targets` ask for it, and prints tables unless data is printed.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn publish(targets: &Targets, report: &CompareReport, timings: &[Timing]) -> Result<()> {
    if targets.json.as_deref() != Some(Path::new("-")) {
        write_text(Path::new("-"), &text::terminal(report))?;
    }
    for path in targets.files(targets.json.as_ref(), "report.json") {
        write_json(&path, report)?;
    }
    for path in targets.files(targets.html.as_ref(), "report.html") {
        write_text(&path, &html::render(report))?;
    }
    for path in targets.files(targets.markdown.as_ref(), "report.md") {
        write_text(&path, &text::markdown(report))?;
    }
    for dir in targets.hgrm.iter().chain(&targets.out) {
        for Timing { scenario, peer, timed } in timings {
            let name = format!("{scenario}.{peer}.{}.hgrm", timed.label);
            write_text(&dir.join(name), &hgrm::render(&timed.histogram))?;
        }
    }
    Ok(())
}
