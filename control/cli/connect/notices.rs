//! What the user of `connect` is told about the session, and asked.
use std::io::IsTerminal;
use std::time::Duration;

use rustix::termios::{QueueSelector, tcflush};
use switchback_control::client::Client;
use switchback_control::shadow::plain_text;
use switchback_control::wire::SessionNotice;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader, Lines, Stdin};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::args::Global;
use crate::output;

/// A little less than the broker waits for the answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(29);

/// How questions are answered and where notices go.
pub(super) struct Attendant {
    client: Client,
    /// Whoever may ask may watch.
    allow: bool,
    /// A terminal to ask on; absent where there is none, or where it is the application's.
    terminal: Option<Lines<BufReader<Stdin>>>,
    json: bool,
    /// JSON goes to standard output, which is not the application's.
    stdout: bool,
    quiet: bool,
}

/// Ends the attendance when dropped.
pub(super) struct Attending(AbortHandle);

impl Drop for Attending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Attendant {
    /// `stdio`: standard input and output are the application's.
    pub(super) fn start(client: Client, allow: bool, stdio: bool, global: &Global) -> Attending {
        let talks = !stdio && !global.json && !allow;
        let talks = talks && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        let terminal = talks.then(|| BufReader::new(tokio::io::stdin()).lines());
        let (json, quiet) = (global.json, global.quiet > 0);
        let mut notices = client.notices();
        let mut this = Self { client, allow, terminal, json, stdout: !stdio, quiet };
        let task = tokio::spawn(async move {
            loop {
                match notices.recv().await {
                    Ok(notice) => this.attend(notice).await,
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Attending(task.abort_handle())
    }

    async fn attend(&mut self, notice: SessionNotice) {
        if let (SessionNotice::ConsentAsked { .. }, Some(lines)) = (&notice, &mut self.terminal) {
            // What the terminal itself still holds. Where that fails, so does reading.
            let _ = tcflush(std::io::stdin(), QueueSelector::IFlush);
            forget_typed(lines).await;
        }
        self.show(&notice);
        if let SessionNotice::ConsentAsked { id, .. } = notice {
            let yes = self.allow || self.ask().await;
            self.client.consent(id, yes);
        }
    }

    /// The person's answer; where there is nobody to ask, no.
    async fn ask(&mut self) -> bool {
        let Some(lines) = &mut self.terminal else {
            if !self.json {
                output::note(
                    "  refused: there is no terminal to ask on (--allow-shadowing allows it)",
                );
            }
            return false;
        };
        let yes = answer(lines, ANSWER_WITHIN).await;
        output::note(if yes { "  allowed" } else { "  refused" });
        yes
    }

    fn show(&self, notice: &SessionNotice) {
        if self.json {
            let text = serde_json::to_string(notice).unwrap_or_default();
            if self.stdout {
                // The reader has left.
                let _ = output::line(&text);
            } else {
                output::note(&text);
            }
        } else if !self.quiet || matches!(notice, SessionNotice::ConsentAsked { .. }) {
            output::note(&in_words(notice, self.terminal.is_some()));
        }
    }
}

/// Forgets what was typed so far: an answer that came too late for its question answers no other. Lines are not read all the
/// time, as that would stop a command in the background.
async fn forget_typed(lines: &mut Lines<impl AsyncBufRead + Unpin>) {
    while let Ok(Ok(Some(_))) = timeout(Duration::ZERO, lines.next_line()).await {}
}

/// Whether the next line is a yes.
async fn answer(lines: &mut Lines<impl AsyncBufRead + Unpin>, within: Duration) -> bool {
    let answer = timeout(within, lines.next_line()).await;
    matches!(answer, Ok(Ok(Some(line))) if is_yes(&line))
}

fn is_yes(line: &str) -> bool {
    matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// Names and texts come from elsewhere.
fn in_words(notice: &SessionNotice, asks: bool) -> String {
    match notice {
        SessionNotice::ConsentAsked { session, by, control, .. } => {
            let what = if *control { "watch and control" } else { "watch" };
            let question = if asks { " Allow? [y/N] (30 s)" } else { "" };
            format!("  {} wants to {what} your session {session}.{question}", plain_text(by))
        }
        SessionNotice::Watched { session, by, control, began } => {
            let how = if *control { "watches and may control" } else { "watches" };
            match began {
                true => format!("  {} {how} your session {session}", plain_text(by)),
                false => format!("  {} no longer watches your session {session}", plain_text(by)),
            }
        }
        SessionNotice::Message { from, text, .. } => {
            format!("  message from {}: {}", plain_text(from), plain_text(text))
        }
        SessionNotice::Held { session, by, held } => match held {
            true => format!("  {} paused your session {session}", plain_text(by)),
            false => format!("  {} let your session {session} go on", plain_text(by)),
        },
    }
}

#[cfg(test)]
mod tests {
    use switchback_control::wire::SessionId;
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_was_typed_before_a_question_does_not_answer_it() {
        let (terminal, mut person) = duplex(1024);
        let mut lines = BufReader::new(terminal).lines();
        let soon = Duration::from_millis(20);
        assert!(!answer(&mut lines, soon).await, "nobody answered the first one");
        person.write_all(b"y\nyes\n").await.unwrap();
        forget_typed(&mut lines).await;
        assert!(!answer(&mut lines, soon).await);
        person.write_all(b"y\n").await.unwrap();
        assert!(answer(&mut lines, soon).await);
    }

    #[test]
    fn only_a_clear_yes_is_one() {
        assert!(is_yes("y") && is_yes(" YES "));
        assert!(!is_yes("") && !is_yes("n") && !is_yes("yeah"));
    }

    #[test]
    fn what_others_wrote_moves_no_cursor() {
        let (session, from) = (SessionId("s".into()), "root".to_owned());
        let notice = SessionNotice::Message { session, from, text: "\x1b[2Jhi".into() };
        assert_eq!(in_words(&notice, true), "  message from root: [2Jhi");
    }
}
