//! `top`: sessions as they go, in a terminal.
mod state;
mod view;

use std::time::{Duration, Instant};

use clap::Args;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
use switchback_control::api::client::Told;
use switchback_control::{Code, Fault};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use self::state::{Input, Key, State};
use crate::account;
use crate::args::Global;
use crate::output;
use crate::stop::Stop;

/// How often sessions are asked for; their figures are a second old anyway.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long the keyboard is waited for at a time, so that its thread ends soon after the command.
const KEY_PATIENCE: Duration = Duration::from_millis(100);
/// What is waiting to be taken in. More than this at once is drawn late, not lost: senders wait.
const QUEUE_MAX: usize = 256;
/// Columns of `--once`.
const ONCE_WIDTH: u16 = 140;

/// Watch sessions, with their recent past.
///
/// RTT is end to end, its bars the last seconds; UP is what the client sends. Enter shows a session's legs and what happened
/// to it. Administrators see all sessions, others their own.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback top
  switchback top --once          one picture as text, for scripts; takes a second
  switchback top --once --json   what `switchback sessions --json` prints")]
pub(crate) struct TopArgs {
    /// Print one picture as text and end
    #[arg(long)]
    once: bool,
}

/// Runs `top`.
pub(crate) async fn run(args: TopArgs, global: &Global) -> Result<(), Fault> {
    if args.once {
        return once(global).await;
    }
    if global.json {
        return Err(Code::UsageInvalid
            .because("--json goes with --once, or `switchback events --follow --json`"));
    }
    // Refused or not reachable: told before the terminal is taken.
    account::api(global)?.whoami().await?;
    let mut stop = Stop::listen()?;
    // Also makes a panic give the terminal back before it is told.
    let mut terminal = ratatui::try_init()
        .map_err(|error| Code::UsageInvalid.because(format!("no terminal: {error}; try --once")))?;
    let shown = tokio::select! {
        shown = watch(&mut terminal, global) => shown,
        () = stop.wait() => Ok(()),
    };
    ratatui::restore();
    shown
}

async fn watch(terminal: &mut DefaultTerminal, global: &Global) -> Result<(), Fault> {
    let (inputs, mut happened) = mpsc::channel(QUEUE_MAX);
    std::thread::spawn({
        let inputs = inputs.clone();
        move || read_keys(&inputs)
    });
    tokio::spawn(ask(account::api(global)?, inputs.clone()));
    tokio::spawn(listen(account::api(global)?, inputs));
    let mut state = State::default();
    while !state.quit {
        terminal
            .draw(|frame| view::draw(frame, &state))
            .map_err(|error| Code::Internal.because(format!("cannot draw: {error}")))?;
        let Some(input) = happened.recv().await else { break };
        input.into_iter().for_each(|input| state.handle(input));
        while let Ok(more) = happened.try_recv() {
            more.into_iter().for_each(|input| state.handle(input));
        }
    }
    Ok(())
}

/// Keys, and (`None`) changes of the terminal's size, until nobody wants them any more.
fn read_keys(inputs: &mpsc::Sender<Option<Input>>) {
    while !inputs.is_closed() {
        let input = match event::poll(KEY_PATIENCE) {
            Ok(false) => continue,
            Ok(true) => match event::read() {
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    let quit = key.modifiers.contains(KeyModifiers::CONTROL)
                        && matches!(key.code, KeyCode::Char('c' | 'd'));
                    let pressed = if quit { Some(Key::Char('q')) } else { key_of(key.code) };
                    let Some(pressed) = pressed else { continue };
                    // Ctrl-C ends it from the filter, too.
                    if quit && inputs.blocking_send(Some(Input::Key(Key::Escape))).is_err() {
                        return;
                    }
                    Some(Input::Key(pressed))
                }
                Ok(_) => None,
                Err(_) => return,
            },
            Err(_) => return,
        };
        if inputs.blocking_send(input).is_err() {
            return;
        }
    }
}

fn key_of(code: KeyCode) -> Option<Key> {
    Some(match code {
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Char(c) => Key::Char(c),
        _ => return None,
    })
}

/// Asks for sessions once a second.
async fn ask(api: switchback_control::api::client::ApiClient, inputs: mpsc::Sender<Option<Input>>) {
    let begun = Instant::now();
    let mut clock = interval(ASK_EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let input = match api.sessions().await {
            Ok(sessions) => Input::Sessions(sessions, millis(begun.elapsed())),
            Err(fault) => Input::Fault(fault.to_string()),
        };
        if inputs.send(Some(input)).await.is_err() {
            return;
        }
    }
}

/// Hears of events, from the oldest that the broker remembers on.
async fn listen(
    api: switchback_control::api::client::ApiClient,
    inputs: mpsc::Sender<Option<Input>>,
) {
    let mut after = 0;
    while !inputs.is_closed() {
        if let Ok(mut stream) = api.follow(Some(after)).await {
            while let Ok(Some(told)) = stream.next().await {
                let Told::Event(event) = told else { continue };
                after = event.id;
                if inputs.send(Some(Input::Event(event))).await.is_err() {
                    return;
                }
            }
        }
        sleep(ASK_EVERY).await;
    }
}

async fn once(global: &Global) -> Result<(), Fault> {
    let api = account::api(global)?;
    if global.json {
        return output::json(&api.sessions().await?);
    }
    let begun = Instant::now();
    let mut state = State::default();
    state.handle(Input::Sessions(api.sessions().await?, 0));
    sleep(ASK_EVERY).await;
    state.handle(Input::Sessions(api.sessions().await?, millis(begun.elapsed())));
    let height = u16::try_from(state.rows().len() + 3).unwrap_or(u16::MAX);
    let mut terminal = Terminal::new(TestBackend::new(ONCE_WIDTH, height))
        .map_err(|error| Code::Internal.because(error.to_string()))?;
    terminal
        .draw(|frame| view::draw(frame, &state))
        .map_err(|error| Code::Internal.because(error.to_string()))?;
    let text = text_of(terminal.backend().buffer());
    // The last line is about keys.
    output::line(text.trim_end().rsplit_once('\n').map_or("", |(picture, _)| picture).trim_end())
}

/// A picture's characters, line by line.
fn text_of(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width).max(1);
    let lines = buffer.content().chunks(width).map(|line| {
        let line: String = line.iter().map(|cell| cell.symbol()).collect();
        line.trim_end().to_owned() + "\n"
    });
    lines.collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
