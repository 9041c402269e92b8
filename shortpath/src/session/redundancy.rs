//! Second copies of small writes: while a path loses packets or is little known, a lone message must not wait a round trip
//! for somebody to notice that it is gone.
use std::ops::Range;
use std::time::{Duration, Instant};

use super::core::Session;
use super::leg::{Copy, Leg};
use super::limits::Redundancy;
use super::select::{Standing, tie};
use super::words::{ChannelId, LegId};

/// Most bytes of a write that counts as small: with its header it fits a datagram of any path.
pub(super) const SMALL: u64 = 1_100;
/// Least time between an original and a copy on the same path, so that one burst of loss does not take both;
/// little enough that both ways of an echo may be hit within 10 ms of 40.
const SPACING: Duration = Duration::from_millis(3);
/// What a copy costs besides its bytes.
const HEADER: u64 = 16;

/// Bytes that may be spent on copies: a share of what is sent or a steady rate, whichever is more. Both are charged for
/// every copy, and one that is not in debt is enough.
#[derive(Debug)]
pub(super) struct Budget {
    by_time: f64,
    by_share: f64,
    at: Option<Instant>,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { by_time: 0.0, by_share: 0.0, at: None }
    }

    /// Bytes of the application's were sent.
    pub(super) fn earn(&mut self, limits: &Redundancy, bytes: u64) {
        // What a pause saves up is a second's worth of time's, and of the share what 1 MiB earns.
        let share = f64::from(limits.percent) / 100.0;
        self.by_share = (self.by_share + bytes as f64 * share).min(share * 1_048_576.0);
    }

    /// More than half of a second's worth is left: a third way is affordable.
    fn is_ample(&self, limits: &Redundancy) -> bool {
        self.by_time.max(self.by_share) > f64::from(limits.bytes_per_second) / 2.0
    }

    /// Takes `bytes`, if there are any left.
    pub(super) fn take(&mut self, now: Instant, limits: &Redundancy, bytes: u64) -> bool {
        let rate = f64::from(limits.bytes_per_second);
        let since = self
            .at
            .replace(now)
            .map_or(Duration::from_secs(1), |at| now.saturating_duration_since(at));
        self.by_time = (self.by_time + rate * since.as_secs_f64()).min(rate);
        let allowed = self.by_time >= bytes as f64 || self.by_share >= bytes as f64;
        if allowed {
            // Debt is bounded, so that a long time on one of them does not shut the other for ever.
            self.by_time = (self.by_time - bytes as f64).max(-rate);
            self.by_share = (self.by_share - bytes as f64).max(-rate);
        }
        allowed
    }
}

impl Session {
    /// Small bytes have left on `on`: sends them a second way where that is worth it.
    pub(super) fn second_copy(
        &mut self,
        now: Instant,
        on: LegId,
        id: ChannelId,
        range: Range<u64>,
    ) {
        let Some(limits) = self.config.redundancy else { return };
        let Some(leg) = self.legs.get(&on) else { return };
        // Legs mostly share the client's own link, and only UDP tells of its losses.
        let lossy = self.legs.values().any(|leg| leg.path.loses(now));
        let len = range.end - range.start;
        if len > SMALL || !(lossy || leg.rtt.is_unsure(now)) || leg.health.suspicion.is_some() {
            return;
        }
        let Some((way, after)) = self.second_way(now, on, lossy, len) else { return };
        if !self.legs.get(&way).is_some_and(Leg::has_room)
            || !self.budget.take(now, &limits, len + HEADER)
        {
            return;
        }
        let more =
            lossy && self.budget.is_ample(&limits) && self.budget.take(now, &limits, len + HEADER);
        let Some(leg) = self.legs.get_mut(&way) else { return };
        let spacing = leg.rtt.smoothed().map_or(SPACING, |rtt| SPACING.max(rtt / 12));
        match after {
            Some(Duration::ZERO) => leg.ripe.push_back((id, range.clone())),
            Some(after) => leg.space(now + after, id, range.clone()),
            None => leg.push_copy(Copy::Bytes(id, range.clone())),
        }
        // While a lost original holds back its stream, a copy is all there is of the messages behind it.
        if let Some(after) = after.filter(|_| more) {
            leg.space(now + after + spacing * 2, id, range);
        }
    }

    /// Where a copy goes: at once as a datagram on a second UDP leg; spaced on the same one when it loses packets, as the
    /// stream of a TCP leg would hold the copy back behind its own losses; else on a TCP leg, which knows no such path's
    /// troubles. The time is `None` for a stream.
    fn second_way(
        &self,
        now: Instant,
        on: LegId,
        lossy: bool,
        len: u64,
    ) -> Option<(LegId, Option<Duration>)> {
        let own = self.legs.get(&on)?;
        let rtt = own.rtt.smoothed()?;
        let fits = |max: usize| u64::try_from(max).unwrap_or(u64::MAX) >= len + HEADER;
        let near = self.legs.iter().filter(|(id, leg)| {
            let near = leg.rtt.smoothed().is_some_and(|other| other <= rtt * 3 / 2 + 2 * SPACING);
            **id != on && near && leg.candidate(now, **id, false).standing >= Standing::Demoted
        });
        let best = near.min_by_key(|(_, leg)| (!leg.kind.is_udp(), leg.rtt.smoothed()));
        let spaced = (fits(own.datagram_max)).then_some((on, Some(SPACING.max(rtt / 12))));
        match best {
            Some((id, leg)) if fits(leg.datagram_max) => Some((*id, Some(Duration::ZERO))),
            Some((id, _)) if spaced.is_none() || !lossy => Some((*id, None)),
            _ => spaced,
        }
    }

    /// The peer says that `count` more copies came before their originals.
    pub(super) fn note_won(&mut self, now: Instant, count: u64) {
        self.dup_won += count;
        let Some(on) = self.selected() else { return };
        let by_chance = self.has_way_as_short(now, on);
        let Some(leg) = self.legs.get_mut(&on) else { return };
        if by_chance && !leg.path.loses(now) {
            return;
        }
        let each = leg.timeout(&self.config);
        self.saved += each * u32::try_from(count).unwrap_or(u32::MAX).min(1 << 16);
        if !by_chance {
            leg.path.note_late(now);
        }
    }

    /// Copies leave at once on a leg about as short as this one: which of the two comes first says nothing of either. Taken
    /// for a delay, it would have copies sent for ever on a path without fault.
    fn has_way_as_short(&self, now: Instant, on: LegId) -> bool {
        let rtt = |id: LegId| self.legs.get(&id).and_then(|leg| leg.rtt.smoothed());
        let way = self.second_way(now, on, false, 0).filter(|(way, _)| *way != on);
        let pair = way.and_then(|(way, _)| rtt(way)).zip(rtt(on));
        pair.is_some_and(|(way, own)| way <= own + tie(own))
    }

    /// Spaced copies that are due may leave.
    pub(super) fn ripen(&mut self, now: Instant) {
        for leg in self.legs.values_mut() {
            while leg.spaced.front().is_some_and(|(at, ..)| *at <= now) {
                leg.ripe.extend(leg.spaced.pop_front().map(|(_, id, range)| (id, range)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(limits: &Redundancy, seconds: u64, sent_per_ms: u64) -> u64 {
        let (mut budget, start) = (Budget::new(), Instant::now());
        let mut spent = 0;
        for ms in 0..seconds * 1_000 {
            budget.earn(limits, sent_per_ms);
            while budget.take(start + Duration::from_millis(ms), limits, 100) {
                spent += 100;
            }
        }
        spent
    }

    #[test]
    fn copies_keep_to_the_share_or_the_rate_whichever_is_more() {
        let limits = Redundancy::default();
        let slow = spent(&limits, 100, 10);
        assert!((780_000..=820_000).contains(&slow), "{slow}");
        let fast = spent(&limits, 100, 10_000);
        assert!((29_000_000..=30_100_000).contains(&fast), "{fast}");
    }
}
