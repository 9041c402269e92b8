//! The picture that `top` draws of its state.
use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};
use switchback_control::api::SessionView;

use super::state::{History, Sort, State};
use crate::events;
use crate::output::human;

/// Characters of a sparkline in the table: as many seconds.
const SPARK: usize = 12;
/// Eighths of a line.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const HEADS: [&str; 10] =
    ["ID", "USER", "RESOURCE", "AGENT", "STATE", "TRANSPORT", "RTT", "", "UP", "DOWN"];
const WIDTHS: [Constraint; 10] = [
    Constraint::Length(12),
    Constraint::Min(8),
    Constraint::Min(8),
    Constraint::Min(8),
    Constraint::Length(10),
    Constraint::Length(21),
    Constraint::Length(9),
    Constraint::Length(SPARK as u16),
    Constraint::Length(12),
    Constraint::Length(12),
];

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let lines = [Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)];
    let [head, body, foot] = Layout::vertical(lines).areas(frame.area());
    frame.render_widget(Paragraph::new(summary(state)).style(bold()), head);
    match &state.detail {
        Some(id) => frame.render_widget(Paragraph::new(close_up(state, id)), body),
        None => table(frame, body, state),
    }
    frame.render_widget(Paragraph::new(help(state)), foot);
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn summary(state: &State) -> String {
    let rows = state.rows();
    let past = rows.iter().filter_map(|session| state.past(&session.id.0));
    let [up, down] = past.map(History::rates).fold([0_u64; 2], |sum, rates| {
        [sum[0].saturating_add(rates[0]), sum[1].saturating_add(rates[1])]
    });
    let mut words = format!(
        "switchback top  {} sessions  up {}  down {}  by {}",
        rows.len(),
        human::rate(up as f64),
        human::rate(down as f64),
        state.sort.name()
    );
    if state.reversed {
        words.push_str(" reversed");
    }
    if state.paused {
        words.push_str("  PAUSED");
    }
    if let Some(fault) = &state.fault {
        words.push_str("  NO ANSWER: ");
        words.push_str(fault);
    }
    printable(&words)
}

fn help(state: &State) -> String {
    if state.typing || !state.filter.is_empty() {
        let cursor = if state.typing { "_" } else { "" };
        return format!("/{}{cursor}  (enter keeps it, esc clears it)", printable(&state.filter));
    }
    let keys = Sort::ALL.map(|(key, _, name)| format!("{key} {name}")).join(", ");
    let view = if state.detail.is_some() { "esc back" } else { "enter close-up" };
    format!("up/down choose, {view}, / filter, sort: {keys}, p pause, q quit")
}

fn table(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let rows = state.rows().into_iter().map(|session| {
        let past = state.past(&session.id.0).cloned().unwrap_or_default();
        Row::new(cells(session, &past).map(|text| Cell::new(printable(&text))))
    });
    let table = Table::new(rows, WIDTHS)
        .header(Row::new(HEADS).style(bold()))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut chosen = TableState::new().with_selected(state.selected_index());
    frame.render_stateful_widget(table, area, &mut chosen);
}

fn cells(session: &SessionView, past: &History) -> [String; 10] {
    let [up, down] = past.rates().map(|rate| human::rate(rate as f64));
    [
        session.id.0.clone(),
        session.user.clone(),
        session.resource.clone(),
        session.agent.clone(),
        session.state.as_str().into(),
        session.transport.clone().unwrap_or_else(|| human::UNKNOWN.into()),
        human::rtt(session.rtt.end_to_end),
        spark(&past.rtt_us, SPARK),
        up,
        down,
    ]
}

/// Everything of one session: who, figures with their past, legs, and what happened to it.
fn close_up<'a>(state: &'a State, id: &'a str) -> Vec<Line<'a>> {
    let Some(session) = state.session(id) else {
        let over = Line::from(format!("session {} is over", printable(id)));
        return [over, Line::default()].into_iter().chain(timeline(state, id)).collect();
    };
    let past = state.past(id).cloned().unwrap_or_default();
    let [up, down] = past.rates().map(|rate| human::rate(rate as f64));
    let spark = |values| spark(values, 60);
    let SessionView { user, resource, agent, gateway, channels, resumes, .. } = session;
    let mut lines = vec![
        format!("{id}  {user}  {resource} at {agent}, through {gateway}"),
        format!(
            "{}, {}, {channels} channels, {resumes} resumes, {}",
            session.state.as_str(),
            human::age(session.age_ms),
            session.slow.because
        ),
        String::new(),
        format!("{:<22}{:>12}  {}", "rtt", human::rtt(session.rtt.end_to_end), spark(&past.rtt_us)),
        format!("{:<22}{up:>12}  {}", "up", spark(&past.up)),
        format!("{:<22}{down:>12}  {}", "down", spark(&past.down)),
        format!("{:<22}{:>12}", "client leg", human::rtt(session.rtt.client_leg)),
        format!("{:<22}{:>12}", "agent leg", human::rtt(session.rtt.agent_leg)),
        String::new(),
    ];
    lines.extend(session.paths.iter().map(|leg| {
        let rtt = leg.rtt_us.map_or_else(|| human::UNKNOWN.into(), |us| human::micros(us.into()));
        let role = if leg.carries { "carries" } else { "stands by" };
        format!("{:<22}{rtt:>12}  {role}", leg.transport)
    }));
    lines.push(String::new());
    lines.into_iter().map(|line| Line::from(printable(&line))).chain(timeline(state, id)).collect()
}

fn timeline<'a>(state: &'a State, id: &'a str) -> impl Iterator<Item = Line<'a>> {
    state.timeline(id).map(|event| Line::from(events::in_words(event)))
}

/// The last `width` values as bars, the greatest of them a full one.
fn spark(values: &VecDeque<u64>, width: usize) -> String {
    let shown = || values.iter().skip(values.len().saturating_sub(width));
    let most = shown().max().copied().unwrap_or_default().max(1);
    shown()
        .map(|value| {
            let eighth = u128::from(*value) * 7 / u128::from(most);
            BARS[usize::try_from(eighth).unwrap_or_default()]
        })
        .collect()
}

/// Names come from other machines: what could move a cursor must not reach the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::state::{Input, Key, tests::three};
    use super::*;
    use crate::top::text_of;

    fn drawn(state: &State) -> String {
        let mut terminal = Terminal::new(TestBackend::new(130, 20)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        text_of(terminal.backend().buffer())
    }

    #[test]
    fn the_table_shows_figures_with_their_past() {
        let text = drawn(&three());
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("switchback top  3 sessions  up 20.5 KiB/s"), "{text}");
        assert!(lines[1].starts_with("ID") && lines[1].contains("TRANSPORT"), "{text}");
        let row = lines.iter().find(|line| line.contains("eve")).unwrap();
        for part in ["UDP (Shortpath)", "20.0 ms", "██", "1000 B/s", "1.95 KiB/s", "active"] {
            assert!(row.contains(part), "{part} in {row}");
        }
        assert!(text.contains("q quit"));
    }

    #[test]
    fn a_close_up_shows_legs_and_the_timeline() {
        let mut state = three();
        let event = r#"{"id":1,"at_ms":1800000000000,"kind":"session_moved","session":"c","detail":"from TCP"}"#;
        state.handle(Input::Event(serde_json::from_str(event).unwrap()));
        state.handle(Input::Key(Key::Enter));
        let text = drawn(&state);
        for part in ["through gate:443", "carries", "session_moved", "(from TCP)", "esc back"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        state.handle(Input::Sessions(vec![], 5000));
        assert!(drawn(&state).contains("session c is over"));
    }

    #[test]
    fn whatever_size_the_terminal_has_it_is_drawn() {
        let mut state = three();
        state.handle(Input::Fault("gone\u{1b}[2J".into()));
        for (width, height) in [(1, 1), (3, 2), (20, 3), (500, 4), (80, 0)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| draw(frame, &state)).unwrap();
        }
        assert!(!drawn(&state).contains('\u{1b}'));
        assert_eq!(spark(&VecDeque::from([0, 1, 2, u64::MAX]), 3), "▁▁█");
        assert_eq!(spark(&VecDeque::new(), 3), "");
    }
}
