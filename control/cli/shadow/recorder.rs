//! `--record`: a watch kept in a file.
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ratatui::crossterm::terminal;
use switchback_control::shadow::cast::CastWriter;
use switchback_control::shadow::frame::{Frame, Hello};
use switchback_control::shadow::pcap::PcapWriter;
use switchback_control::{Code, Fault};

/// Takes names that say how to record.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|it| it.to_str()) {
        Some("cast" | "pcap") => Ok(path),
        _ => Err("the name must end in .cast (a terminal) or .pcap (a network analyser)".into()),
    }
}

/// Makes the file, for its owner only; one that is there stays as it is.
pub(super) fn create(path: &Path) -> Result<File, Fault> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|error| {
        Code::UsageInvalid.because(format!("cannot record to {}: {error}", path.display()))
    })
}

/// Writes what a watch shows.
pub(super) struct Recorder {
    path: PathBuf,
    file: Option<File>,
    channel: Option<u64>,
    form: Option<Form>,
}

enum Form {
    /// The channel chosen, once one is.
    Cast(CastWriter<BufWriter<File>>),
    Pcap(PcapWriter<BufWriter<File>>),
}

impl Recorder {
    /// `channel`: the one for a form that has room for one; without, the first with bytes.
    pub(super) fn new(file: File, path: &Path, channel: Option<u64>) -> Self {
        Self { path: path.to_owned(), file: Some(file), channel, form: None }
    }

    pub(super) fn begin(&mut self, hello: &Hello) -> Result<(), Fault> {
        let Some(file) = self.file.take() else { return Ok(()) };
        let (out, is_pcap) =
            (BufWriter::new(file), self.path.extension().is_some_and(|it| it == "pcap"));
        let form = if is_pcap {
            PcapWriter::new(out, hello.kind, hello.port).map(Form::Pcap)
        } else {
            let title = format!("{} of {} ({})", hello.resource, hello.user, hello.session);
            let size = terminal::size().unwrap_or((80, 24));
            // Earlier than whatever the backlog holds.
            CastWriter::new(out, &title, size, hello.since_us).map(Form::Cast)
        };
        self.form = Some(form.map_err(|error| failed(&self.path, &error))?);
        Ok(())
    }

    pub(super) fn take(&mut self, frame: &Frame) -> Result<(), Fault> {
        let written = match (&mut self.form, frame) {
            (Some(Form::Cast(cast)), Frame::Data { channel, direction, at_us, bytes })
                if *self.channel.get_or_insert(*channel) == *channel =>
            {
                cast.data(*at_us, *direction, bytes)
            }
            (Some(Form::Cast(cast)), Frame::Skipped { channel, at_us, bytes, .. })
                if self.channel == Some(*channel) =>
            {
                cast.skipped(*at_us, *bytes)
            }
            (Some(Form::Pcap(pcap)), frame) => take_pcap(pcap, frame),
            _ => Ok(()),
        };
        written.map_err(|error| failed(&self.path, &error))
    }

    /// Writes what is left.
    pub(super) fn finish(self) -> Result<(), Fault> {
        let finished = match self.form {
            Some(Form::Cast(cast)) => cast.finish().map(drop),
            Some(Form::Pcap(pcap)) => pcap.finish().map(drop),
            None => Ok(()),
        };
        finished.map_err(|error| failed(&self.path, &error))
    }
}

fn take_pcap(pcap: &mut PcapWriter<BufWriter<File>>, frame: &Frame) -> io::Result<()> {
    match frame {
        Frame::Opened { channel, at_us } => pcap.opened(*at_us, *channel),
        Frame::Data { channel, direction, at_us, bytes } => {
            pcap.data(*at_us, *channel, *direction, bytes)
        }
        Frame::Skipped { channel, direction, bytes, .. } => {
            pcap.skipped(*channel, *direction, *bytes);
            Ok(())
        }
        Frame::Closed { channel, at_us } => pcap.closed(*at_us, *channel),
        Frame::Hello(_) | Frame::SessionEnded { .. } | Frame::Inject { .. } => Ok(()),
    }
}

fn failed(path: &Path, error: &io::Error) -> Fault {
    Code::Internal.because(format!("cannot record to {}: {error}", path.display()))
}
