//! `shadow`: watch a live session, control it, record it.
mod keys;
mod recorder;

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use data_encoding::BASE64;
use serde_json::json;
use switchback_control::client::{Client, ClientOptions, ClientSession, Injector, Watching, watch};
use switchback_control::shadow::frame::{Direction, Frame, Hello};
use switchback_control::wire::{SessionId, ShadowWish};
use switchback_control::{Code, Fault};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

use self::keys::{Keys, RawMode};
use self::recorder::Recorder;
use crate::args::Global;
use crate::stop::Stop;
use crate::udp_args::UdpArgs;
use crate::{account, output};

/// Watch a live session.
///
/// Shows what the service of the session sends, from now on and the last 64 KiB before, byte for byte: best on a terminal as
/// large as the user's. The session's user is asked first (30 s to answer), sees who watches, and hears when it ends. With
/// --control what is typed goes into the session; `~.` at the start of a line ends the watch. --record keeps all that
/// passes: FILE.cast is an asciicast of one channel for terminals, FILE.pcap has every channel for a network analyser.
/// `switchback replay` plays both. What is watched travels from the agent to here end to end encrypted.
///
/// A resource with a shadow target (`shadow=` or `shadow-view=` at its agent) connects watchers to that service instead;
/// --listen gives it a local port, for a VNC viewer or the like.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback shadow k3m9x2q7w4ht
  switchback shadow k3m9x2q7w4ht --control
  switchback shadow k3m9x2q7w4ht --record incident.cast      then: switchback replay incident.cast
  switchback shadow k3m9x2q7w4ht --record incident.pcap --json >/dev/null
  switchback shadow k3m9x2q7w4ht --control --listen 127.0.0.1:5900      a resource with shadow=tcp:...")]
pub(crate) struct ShadowArgs {
    /// Session id, from `switchback sessions`
    id: String,
    /// Also send what comes on standard input into the session
    #[arg(long)]
    control: bool,
    /// Channel to show and control [default: the first that is open, then the next]
    #[arg(long, value_name = "N")]
    channel: Option<u64>,
    /// Keep what passes: FILE.cast or FILE.pcap, a new file
    #[arg(long, value_name = "FILE", value_parser = recorder::path)]
    record: Option<PathBuf>,
    /// Do not ask the session's user, where that is permitted; the user still sees it
    #[arg(long)]
    no_consent_prompt: bool,
    /// Local port for the resource's shadow target
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with_all = ["record", "channel"])]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    udp: UdpArgs,
}

/// Runs `shadow`.
pub(crate) async fn run(args: ShadowArgs, global: &Global) -> Result<(), Fault> {
    let invite = account::invite(global)?;
    let mut stop = Stop::listen()?;
    let listener = match args.listen {
        Some(address) => Some(crate::connect::bind(address).await?),
        None => None,
    };
    // Before anybody is asked: a file that cannot be made is no reason to disturb a user.
    let file = args.record.as_ref().map(|path| recorder::create(path)).transpose()?;
    let (udp, session) = (args.udp.options(), args.udp.session());
    let options = ClientOptions { udp, session, ready_max: 0, ..ClientOptions::default() };
    let wish = ShadowWish {
        session: SessionId(args.id.clone()),
        control: args.control,
        no_prompt: args.no_consent_prompt,
        target: false,
    };
    if !global.json && global.quiet == 0 && !args.no_consent_prompt {
        output::note("asking the session's user; Ctrl-C gives up");
    }
    let opening = async { Client::connect_with(invite, options).await?.shadow(wish).await };
    let session = tokio::select! {
        session = opening => session?,
        () = stop.wait() => return Ok(()),
    };
    let outcome = match (session.sees_target(), listener) {
        (true, listener) => at_target(&session, listener, &args, global, &mut stop).await,
        (false, Some(_)) => Err(Code::UsageInvalid
            .because("--listen is for resources with a shadow target, and this one has none")),
        (false, None) => {
            let recorder = file
                .zip(args.record.as_deref())
                .map(|(file, path)| Recorder::new(file, path, args.channel));
            show(&session, &args, recorder, global, &mut stop).await
        }
    };
    // The other end learns of a lost farewell by itself.
    let _ = timeout(crate::connect::CLOSE_PATIENCE, session.close()).await;
    outcome
}

/// The resource's own service for watchers.
async fn at_target(
    session: &ClientSession,
    listener: Option<TcpListener>,
    args: &ShadowArgs,
    global: &Global,
    stop: &mut Stop,
) -> Result<(), Fault> {
    if args.record.is_some() {
        return Err(Code::UsageInvalid
            .because("the resource has a shadow target; what passes there is not recorded"));
    }
    let Some(listener) = listener else {
        return tokio::select! {
            outcome = session.stdio() => outcome,
            () = stop.wait() => Ok(()),
        };
    };
    let listen = listener.local_addr().ok();
    if global.json {
        output::json(&json!({"type": "listening", "session": args.id, "listen": listen}))?;
    } else if let Some(listen) = listen.filter(|_| global.quiet == 0) {
        output::note(&format!("watching session {} at {listen}", args.id));
    }
    tokio::select! {
        outcome = session.forward(listener) => outcome,
        () = stop.wait() => Ok(()),
    }
}

/// What the agent tees.
async fn show(
    session: &ClientSession,
    args: &ShadowArgs,
    mut recorder: Option<Recorder>,
    global: &Global,
    stop: &mut Stop,
) -> Result<(), Fault> {
    let (mut watching, mut injector) = watch(session)?;
    let mut screen = Screen { fixed: args.channel, shown: None, json: global.json };
    // Until the agent has said what there is, nothing can be typed.
    let hello = tokio::select! {
        first = watching.next() => first?,
        () = stop.wait() => return Ok(()),
    };
    let Some(Frame::Hello(hello)) = hello else {
        return Err(Code::SessionProtocol.because("the agent did not say what is watched"));
    };
    greet(&hello, global)?;
    if let Some(recorder) = &mut recorder {
        recorder.begin(&hello)?;
    }
    let terminal = std::io::stdin().is_terminal();
    let _raw = (args.control && terminal).then(RawMode::enter).transpose()?;
    let mut typed = args.control.then(|| keys::read(terminal));
    let outcome =
        follow(&mut watching, &mut injector, &mut screen, (&mut recorder, &mut typed), stop).await;
    if let Some(recorder) = recorder {
        recorder.finish()?;
    }
    outcome
}

async fn follow(
    watching: &mut Watching,
    injector: &mut Injector,
    screen: &mut Screen,
    (recorder, typed): (&mut Option<Recorder>, &mut Option<mpsc::Receiver<Keys>>),
    stop: &mut Stop,
) -> Result<(), Fault> {
    loop {
        let may_type = screen.shown.is_some();
        tokio::select! {
            biased;
            () = stop.wait() => return Ok(()),
            frame = watching.next() => {
                let Some(frame) = frame? else { return Ok(()) };
                if let Some(recorder) = recorder {
                    recorder.take(&frame)?;
                }
                if screen.take(&frame)? {
                    return Ok(());
                }
            }
            keys = next(typed), if may_type => match (keys, screen.shown) {
                (Keys::Typed(bytes), Some(channel)) => injector.inject(channel, bytes).await?,
                (Keys::End, _) => return Ok(()),
                // What is typed has ended; what is shown has not.
                (Keys::Closed, _) => *typed = None,
                (Keys::Typed(_), None) => {}
            },
        }
    }
}

async fn next(typed: &mut Option<mpsc::Receiver<Keys>>) -> Keys {
    match typed {
        Some(typed) => typed.recv().await.unwrap_or(Keys::Closed),
        None => std::future::pending().await,
    }
}

fn greet(hello: &Hello, global: &Global) -> Result<(), Fault> {
    if global.json {
        return output::json(&json!({"type": "hello", "hello": hello}));
    }
    if global.quiet == 0 {
        let Hello { session, user, resource, control, .. } = hello;
        let how = if *control { "controlling (~. ends)" } else { "watching (Ctrl-C ends)" };
        output::note(&format!("{how} session {session} of {user} to {resource}"));
    }
    Ok(())
}

/// Shows one channel, or as JSON all of them.
struct Screen {
    fixed: Option<u64>,
    shown: Option<u64>,
    json: bool,
}

impl Screen {
    /// True once the watch is over.
    fn take(&mut self, frame: &Frame) -> Result<bool, Fault> {
        self.choose(frame);
        if self.json {
            output::json(&as_json(frame))?;
        }
        match frame {
            Frame::Data { channel, direction: Direction::ToClient, bytes, .. }
                if !self.json && self.shown == Some(*channel) =>
            {
                return paint(bytes);
            }
            Frame::Skipped { channel, direction: Direction::ToClient, bytes, .. }
                if !self.json && self.shown == Some(*channel) =>
            {
                output::note(&format!("\r\n[{bytes} bytes skipped]\r"));
            }
            Frame::SessionEnded { why, .. } => {
                if !self.json {
                    output::note(&format!("\r\nthe session has ended: {why}\r"));
                }
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    fn choose(&mut self, frame: &Frame) {
        match frame {
            Frame::Opened { channel, .. }
                if self.shown.is_none() && self.fixed.is_none_or(|fixed| fixed == *channel) =>
            {
                self.shown = Some(*channel);
            }
            Frame::Closed { channel, .. } if self.shown == Some(*channel) => self.shown = None,
            _ => {}
        }
    }
}

/// A reader that left ends the watch.
pub(crate) fn paint(bytes: &Bytes) -> Result<bool, Fault> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(true),
        Err(error) => {
            Err(Code::Internal.because(format!("cannot write to standard output: {error}")))
        }
    }
}

fn as_json(frame: &Frame) -> serde_json::Value {
    match frame {
        Frame::Opened { channel, at_us } => {
            json!({"type": "opened", "channel": channel, "at_us": at_us})
        }
        Frame::Data { channel, direction, at_us, bytes } => json!({
            "type": "data", "channel": channel, "direction": direction, "at_us": at_us,
            "bytes": BASE64.encode(bytes),
        }),
        Frame::Skipped { channel, direction, at_us, bytes } => json!({
            "type": "skipped", "channel": channel, "direction": direction, "at_us": at_us,
            "count": bytes,
        }),
        Frame::Closed { channel, at_us } => {
            json!({"type": "closed", "channel": channel, "at_us": at_us})
        }
        Frame::SessionEnded { at_us, why } => {
            json!({"type": "session_ended", "at_us": at_us, "why": why})
        }
        Frame::Hello(hello) => json!({"type": "hello", "hello": hello}),
        Frame::Inject { channel, .. } => json!({"type": "inject", "channel": channel}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_open_channel_is_shown_and_after_it_the_next() {
        let mut screen = Screen { fixed: None, shown: None, json: true };
        for channel in [4, 5] {
            screen.choose(&Frame::Opened { channel, at_us: 1 });
        }
        assert_eq!(screen.shown, Some(4));
        screen.choose(&Frame::Closed { channel: 4, at_us: 1 });
        screen.choose(&Frame::Opened { channel: 6, at_us: 1 });
        assert_eq!(screen.shown, Some(6));
        let mut fixed = Screen { fixed: Some(2), shown: None, json: true };
        fixed.choose(&Frame::Opened { channel: 1, at_us: 1 });
        assert_eq!(fixed.shown, None);
    }
}
