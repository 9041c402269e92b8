//! What `top` shows and how keys change it. Pure: data and keys in, a picture's content out.
use std::collections::{HashMap, VecDeque};

use switchback_control::api::{EventView, SessionView};

/// Samples kept per session, one a second.
const HISTORY: usize = 60;
/// Events kept for the timeline of a session that someone may look at.
const EVENTS_MAX: usize = 1000;
/// Longest filter: nobody types more.
const FILTER_CHARS_MAX: usize = 64;

/// A key, as far as `top` knows any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    Enter,
    Escape,
    Backspace,
    Char(char),
}

/// Something that happened.
#[derive(Debug)]
pub(super) enum Input {
    Key(Key),
    /// All sessions, as seen at this time in milliseconds of any steady clock.
    Sessions(Vec<SessionView>, u64),
    Event(Box<EventView>),
    /// The broker cannot be asked: why.
    Fault(String),
}

/// What the table is sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Age,
    Rtt,
    Rate,
    User,
    Resource,
}

impl Sort {
    pub(super) const ALL: [(char, Self, &'static str); 5] = [
        ('a', Self::Age, "age"),
        ('t', Self::Rtt, "rtt"),
        ('b', Self::Rate, "rate"),
        ('u', Self::User, "user"),
        ('r', Self::Resource, "resource"),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, sort, _)| *sort == self).map_or("", |(_, _, name)| name)
    }
}

/// A session's recent past, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// Microseconds; 0 where unknown.
    pub(super) rtt_us: VecDeque<u64>,
    /// Bytes per second from client to target.
    pub(super) up: VecDeque<u64>,
    /// Bytes per second from target to client.
    pub(super) down: VecDeque<u64>,
    /// Bytes both ways at the last sample, and when.
    last: Option<(u64, u64, u64)>,
}

impl History {
    fn sample(&mut self, view: &SessionView, at_ms: u64) {
        let (up, down) = (view.client_to_target, view.target_to_client);
        let rates = self.last.map(|(up_before, down_before, before_ms)| {
            let ms = at_ms.saturating_sub(before_ms).max(1);
            [up.saturating_sub(up_before), down.saturating_sub(down_before)]
                .map(|bytes| bytes.saturating_mul(1000) / ms)
        });
        self.last = Some((up, down, at_ms));
        let [up, down] = rates.unwrap_or_default();
        push(&mut self.up, up);
        push(&mut self.down, down);
        push(&mut self.rtt_us, view.rtt.end_to_end.map_or(0, |rtt| rtt.smoothed_us.into()));
    }

    pub(super) fn rates(&self) -> [u64; 2] {
        [&self.up, &self.down].map(|rates| rates.back().copied().unwrap_or_default())
    }
}

fn push(values: &mut VecDeque<u64>, value: u64) {
    if values.len() == HISTORY {
        values.pop_front();
    }
    values.push_back(value);
}

/// All that is shown.
#[derive(Debug)]
pub(super) struct State {
    sessions: Vec<SessionView>,
    history: HashMap<String, History>,
    events: VecDeque<EventView>,
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    pub(super) filter: String,
    /// Keys go to the filter.
    pub(super) typing: bool,
    selected: Option<String>,
    /// The session that is looked at closely.
    pub(super) detail: Option<String>,
    pub(super) paused: bool,
    pub(super) fault: Option<String>,
    pub(super) quit: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            sessions: Vec::new(),
            history: HashMap::new(),
            events: VecDeque::new(),
            sort: Sort::Age,
            reversed: false,
            filter: String::new(),
            typing: false,
            selected: None,
            detail: None,
            paused: false,
            fault: None,
            quit: false,
        }
    }
}

impl State {
    /// Takes in what happened.
    pub(super) fn handle(&mut self, input: Input) {
        match input {
            Input::Key(key) if self.typing => self.type_filter(key),
            Input::Key(key) => self.press(key),
            Input::Sessions(sessions, at_ms) => self.sessions(sessions, at_ms),
            Input::Event(event) => {
                if self.events.len() == EVENTS_MAX {
                    self.events.pop_front();
                }
                self.events.push_back(*event);
            }
            Input::Fault(fault) => self.fault = Some(fault),
        }
    }

    fn type_filter(&mut self, key: Key) {
        match key {
            Key::Enter => self.typing = false,
            Key::Escape => {
                self.typing = false;
                self.filter.clear();
            }
            Key::Backspace => {
                self.filter.pop();
            }
            Key::Char(c) if self.filter.chars().count() < FILTER_CHARS_MAX => self.filter.push(c),
            _ => {}
        }
    }

    fn press(&mut self, key: Key) {
        match key {
            Key::Up | Key::Char('k') => self.step(-1),
            Key::Down | Key::Char('j') => self.step(1),
            Key::Enter => self.detail = self.selected().map(|session| session.id.0.clone()),
            Key::Escape if self.detail.is_some() => self.detail = None,
            Key::Escape => self.filter.clear(),
            Key::Char('q') => self.quit = true,
            Key::Char('p' | ' ') => self.paused = !self.paused,
            Key::Char('/') => self.typing = true,
            Key::Char(c) => {
                if let Some((_, sort, _)) = Sort::ALL.iter().find(|(key, ..)| *key == c) {
                    self.reversed = self.sort == *sort && !self.reversed;
                    self.sort = *sort;
                }
            }
            Key::Backspace => {}
        }
    }

    /// While paused the picture stands still; the past goes on to be kept.
    fn sessions(&mut self, sessions: Vec<SessionView>, at_ms: u64) {
        self.fault = None;
        for session in &sessions {
            self.history.entry(session.id.0.clone()).or_default().sample(session, at_ms);
        }
        self.history.retain(|id, _| sessions.iter().any(|session| session.id.0 == *id));
        if !self.paused {
            self.sessions = sessions;
        }
    }

    fn step(&mut self, by: isize) {
        let rows = self.rows();
        let at = self.selected_index().unwrap_or_default();
        let next = at.saturating_add_signed(by).min(rows.len().saturating_sub(1));
        self.selected = rows.get(next).map(|session| session.id.0.clone());
    }

    /// What passes the filter, in order.
    pub(super) fn rows(&self) -> Vec<&SessionView> {
        let mut rows: Vec<_> =
            self.sessions.iter().filter(|session| self.passes(session)).collect();
        rows.sort_by(|a, b| {
            let order = match self.sort {
                Sort::Age => b.age_ms.cmp(&a.age_ms),
                Sort::Rtt => rtt(b).cmp(&rtt(a)),
                Sort::Rate => self.rate(b).cmp(&self.rate(a)),
                Sort::User => a.user.cmp(&b.user),
                Sort::Resource => a.resource.cmp(&b.resource),
            };
            order.then_with(|| a.id.cmp(&b.id))
        });
        if self.reversed {
            rows.reverse();
        }
        rows
    }

    fn passes(&self, session: &SessionView) -> bool {
        let SessionView { id, user, resource, agent, state, transport, .. } = session;
        let texts: [&str; 5] =
            [&id.0, user, resource, agent, transport.as_deref().unwrap_or_default()];
        let texts = texts.into_iter().map(str::to_lowercase).chain([state.as_str().to_owned()]);
        let wanted = self.filter.to_lowercase();
        texts.into_iter().any(|text| text.contains(&wanted))
    }

    fn rate(&self, session: &SessionView) -> u64 {
        self.past(&session.id.0).map_or(0, |past| past.rates().iter().sum())
    }

    /// The chosen row; the first, while none is chosen or the chosen one is gone.
    pub(super) fn selected_index(&self) -> Option<usize> {
        let rows = self.rows();
        let chosen = self.selected.as_ref();
        let found = rows.iter().position(|session| Some(&session.id.0) == chosen);
        found.or_else(|| (!rows.is_empty()).then_some(0))
    }

    fn selected(&self) -> Option<&SessionView> {
        self.rows().get(self.selected_index()?).copied()
    }

    pub(super) fn past(&self, id: &str) -> Option<&History> {
        self.history.get(id)
    }

    pub(super) fn session(&self, id: &str) -> Option<&SessionView> {
        self.sessions.iter().find(|session| session.id.0 == id)
    }

    /// Events of a session, newest first.
    pub(super) fn timeline<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a EventView> {
        let of = move |event: &&EventView| event.session.as_ref().is_some_and(|it| it.0 == id);
        self.events.iter().rev().filter(of)
    }
}

fn rtt(session: &SessionView) -> u32 {
    session.rtt.end_to_end.map_or(0, |rtt| rtt.smoothed_us)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A session with these figures.
    pub(in crate::top) fn session(id: &str, user: &str, rtt_us: u32, bytes: u64) -> SessionView {
        let view = json!({ "smoothed_us": rtt_us, "min_us": 1, "p50_us": 2, "p99_us": 3 });
        serde_json::from_value(json!({
            "id": id, "user": user, "resource": "ssh", "agent": "lab", "gateway": "gate:443",
            "state": "active", "transport": "UDP (Shortpath)",
            "paths": [{ "transport": "UDP (Shortpath)", "carries": true, "rtt_us": rtt_us }],
            "rtt": { "client_leg": null, "agent_leg": null, "end_to_end": view },
            "client_to_target": bytes, "target_to_client": 2 * bytes,
            "age_ms": bytes, "channels": 1, "resumes": 0,
        }))
        .unwrap()
    }

    fn keys(state: &mut State, text: &str) {
        text.chars().for_each(|c| state.handle(Input::Key(Key::Char(c))));
    }

    fn ids(state: &State) -> String {
        state.rows().iter().map(|session| session.id.0.as_str()).collect()
    }

    /// Three sessions, seen twice, a second apart.
    pub(in crate::top) fn three() -> State {
        let mut state = State::default();
        for (at_ms, factor) in [(0, 1), (1000, 3)] {
            let sessions = vec![
                session("a", "ada", 9_000, 1000 * factor),
                session("b", "eve", 20_000, 500 * factor),
                session("c", "max", 400, 9000 * factor),
            ];
            state.handle(Input::Sessions(sessions, at_ms));
        }
        state
    }

    #[test]
    fn keys_sort_and_the_same_key_again_reverses() {
        let mut state = three();
        for (key, order) in [("a", "bac"), ("t", "bac"), ("t", "cab"), ("b", "cab"), ("u", "abc")] {
            keys(&mut state, key);
            assert_eq!(ids(&state), order, "{key}");
        }
    }

    #[test]
    fn a_filter_narrows_and_escape_clears_it() {
        let mut state = three();
        keys(&mut state, "/EVq");
        assert!(!state.quit, "keys go to the filter");
        state.handle(Input::Key(Key::Backspace));
        assert_eq!(ids(&state), "b");
        state.handle(Input::Key(Key::Enter));
        state.handle(Input::Key(Key::Escape));
        assert_eq!(state.rows().len(), 3);
        keys(&mut state, "q");
        assert!(state.quit);
    }

    #[test]
    fn the_choice_follows_its_session_and_survives_its_end() {
        let mut state = three();
        keys(&mut state, "uj");
        assert_eq!(state.selected().unwrap().id.0, "b");
        keys(&mut state, "t");
        assert_eq!(state.selected().unwrap().id.0, "b", "however it is sorted");
        state.handle(Input::Key(Key::Enter));
        assert_eq!(state.detail.as_deref(), Some("b"));
        state.handle(Input::Sessions(vec![session("c", "max", 1, 1)], 2000));
        assert_eq!(state.selected().unwrap().id.0, "c");
        assert!(state.session("b").is_none() && state.past("b").is_none());
        state.handle(Input::Sessions(vec![], 3000));
        keys(&mut state, "jk");
        assert!(state.selected().is_none());
    }

    #[test]
    fn rates_are_per_second_and_a_counter_that_falls_is_no_rate() {
        let mut state = three();
        assert_eq!(state.past("a").unwrap().rates(), [2000, 4000]);
        state.handle(Input::Sessions(vec![session("a", "ada", 1, 10)], 1500));
        assert_eq!(state.past("a").unwrap().rates(), [0, 0]);
        for second in 0..200 {
            state.handle(Input::Sessions(vec![session("a", "ada", 1, 10)], second));
        }
        assert_eq!(state.past("a").unwrap().rtt_us.len(), HISTORY);
    }

    #[test]
    fn paused_the_picture_stands_still() {
        let mut state = three();
        keys(&mut state, "p");
        state.handle(Input::Sessions(vec![], 2000));
        assert_eq!(state.rows().len(), 3);
        keys(&mut state, "p");
        state.handle(Input::Sessions(vec![], 3000));
        assert!(state.rows().is_empty());
    }
}
