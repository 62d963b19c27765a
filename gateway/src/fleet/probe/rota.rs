//! Whose turn it is to be probed. It reads no clock and sends nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use windrose_route::Digest;

/// How often it is looked whose turn it is.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// The most probes of one look, so that 480 replicas have their turn within a second and a half.
const PER_LOOK: usize = 80;
/// How often a replica is probed that answers requests, or is out: the third look after the last, whatever a timer is
/// off.
const EVERY: Duration = Duration::from_millis(700);
/// How often one is probed that has answered no request since its last probe: first, and at last. Between, as rarely as
/// it has been idle for: what is not asked for must not seem to be in use all the time.
const IDLE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// So many times as long as one takes lies between two: a probe has no more than a twentieth of a place at an engine.
const APART: u32 = 20;

/// A replica of a version, with what it serves: another digest is another's test.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub model: String,
    pub version: String,
    pub site: Arc<str>,
    pub digest: Option<Digest>,
}

/// What is known of a replica that may be probed.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub key: Key,
    /// Whether it is ejected: a right answer may bring it back.
    pub ejected: bool,
    /// When it answered a request last.
    pub answered: Option<Instant>,
}

/// How a probe ended. The spans are those beyond the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// With an answer to the input, after so long.
    Answered(Duration),
    /// With none after so long.
    GivenUp(Duration),
    /// There was no room: most likely another gateway's probe was there.
    NoRoom,
    /// In any other way.
    Otherwise,
}

/// The turns of all replicas.
#[derive(Default)]
pub(super) struct Rota {
    seen: HashMap<Key, Seen>,
}

/// What the probes of a replica have met.
struct Seen {
    /// When the first one was sent, and the last.
    first: Instant,
    sent: Instant,
    is_running: bool,
    /// The last one found no room.
    is_crowded: bool,
    /// How long the last ones took that were answered or given up, the last first.
    took: [Option<Duration>; 3],
    /// How long the last one took that was answered.
    answered: Option<Duration>,
}

/// Who comes first where more are due than may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// Requests go there, or would if it answered rightly.
    Asked,
    /// It was never probed.
    New,
    Idle,
}

// === impl Rota ===

impl Rota {
    /// Whose turn it is, by their places in the list, which has all that may be probed. They count as asked now.
    pub fn turn(&mut self, all: &[Known], now: Instant) -> Vec<usize> {
        let there: HashSet<&Key> = all.iter().map(|known| &known.key).collect();
        self.seen.retain(|key, _| there.contains(key));
        let mut due: Vec<(Urgency, Option<Instant>, usize)> = Vec::new();
        for (at, known) in all.iter().enumerate() {
            match self.seen.get(&known.key) {
                Some(seen) => due.extend(seen.urgency(known, now).map(|urgency| (urgency, Some(seen.sent), at))),
                None if known.ejected || known.answered.is_some() => due.push((Urgency::Asked, None, at)),
                None => due.push((Urgency::New, None, at)),
            }
        }
        // Of those that are as urgent, whoever has waited longest.
        due.sort_unstable();
        due.truncate(PER_LOOK);
        for (_, _, at) in &due {
            let seen = self.seen.entry(all[*at].key.clone()).or_insert_with(|| Seen::new(now));
            (seen.sent, seen.is_running) = (now, true);
        }
        due.into_iter().map(|(_, _, at)| at).collect()
    }

    /// A replica's probe is over.
    pub fn over(&mut self, key: &Key, ended: Ended) {
        let Some(seen) = self.seen.get_mut(key) else { return };
        (seen.is_running, seen.is_crowded) = (false, ended == Ended::NoRoom);
        match ended {
            Ended::Answered(took) => {
                seen.answered = Some(took);
                seen.remember(took);
            }
            Ended::GivenUp(took) => seen.remember(took),
            Ended::NoRoom | Ended::Otherwise => {}
        }
    }

    /// How long a replica took for the last probe that it answered.
    pub fn usual(&self, key: &Key) -> Option<Duration> {
        self.seen.get(key)?.answered
    }
}

// === impl Seen ===

impl Seen {
    fn new(sent: Instant) -> Seen {
        Seen { first: sent, sent, is_running: false, is_crowded: false, took: [None; 3], answered: None }
    }

    fn remember(&mut self, took: Duration) {
        self.took.rotate_right(1);
        self.took[0] = Some(took);
    }

    /// How long the engine is kept from others. The quickest of the last: a machine that pauses makes a single one
    /// late, and is no reason to look away.
    fn costs(&self) -> Duration {
        self.took.iter().flatten().min().copied().unwrap_or_default()
    }

    /// How urgent the next one is, if its time has come.
    fn urgency(&self, known: &Known, now: Instant) -> Option<Urgency> {
        let is_asked = self.is_crowded || known.ejected || known.answered.is_some_and(|at| at > self.sent);
        let idle = self.sent.saturating_duration_since(known.answered.unwrap_or(self.first)).clamp(IDLE.0, IDLE.1);
        let (every, urgency) = if is_asked { (EVERY, Urgency::Asked) } else { (idle, Urgency::Idle) };
        let pause = match self.is_crowded {
            // Whoever took the place has it for as long as an answer takes.
            true => LOOK.max(self.costs()).saturating_sub(LOOK / 10),
            false => every.max(self.costs() * APART),
        };
        let is_due = !self.is_running && now.saturating_duration_since(self.sent) >= pause;
        is_due.then_some(urgency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn known(at: usize) -> Known {
        let key = Key { model: "m".into(), version: at.to_string(), site: "site".into(), digest: Some([1; 32]) };
        Known { key, ejected: false, answered: None }
    }

    /// Looks for so long, with every probe ending so before the next look, and requests being answered all the time by
    /// those before `asked`. Gives for each replica when it had its turns.
    fn looks(count: usize, asked: usize, span: Duration, ended: impl Fn(usize, usize) -> Ended) -> Vec<Vec<Duration>> {
        let (mut rota, start) = (Rota::default(), Instant::now());
        let mut all: Vec<Known> = (0..count).map(known).collect();
        let mut turns = vec![Vec::new(); count];
        for look in 0..=u32::try_from(span.as_millis() / LOOK.as_millis()).unwrap() {
            let now = start + LOOK * look;
            all[..asked].iter_mut().for_each(|known| known.answered = Some(now));
            let turn = rota.turn(&all, now);
            assert!(turn.len() <= PER_LOOK);
            for at in turn {
                rota.over(&all[at].key, ended(at, turns[at].len()));
                turns[at].push(now - start);
            }
        }
        turns
    }

    fn longest_wait(turns: &[Duration], end: Duration) -> Duration {
        let starts = std::iter::once(Duration::ZERO).chain(turns.iter().copied());
        starts.zip(turns.iter().copied().chain([end])).map(|(from, to)| to - from).max().unwrap()
    }

    #[test]
    fn whatever_answers_requests_is_reached_in_a_second_and_a_half() {
        let span = Duration::from_secs(12);
        for (count, asked) in [(3, 3), (132, 132), (480, 480), (3_000, 400)] {
            let turns = looks(count, asked, span, |_, _| Ended::Answered(MS));
            for turns in &turns[..asked] {
                assert!(longest_wait(turns, span) <= 1_500 * MS, "{count}: {turns:?}");
                assert!(turns.windows(2).all(|two| two[1] - two[0] >= EVERY), "{turns:?}");
            }
        }
    }

    #[test]
    fn one_that_no_request_goes_to_is_left_alone_until_one_does() {
        let mut rota = Rota::default();
        let (mut all, start) = ([known(0)], Instant::now());
        assert_eq!(rota.turn(&all, start), [0]);
        assert_eq!(rota.turn(&all, start + IDLE.0), [0; 0], "it has not answered yet");
        rota.over(&all[0].key, Ended::Answered(MS));
        assert_eq!(rota.turn(&all, start + 4_900 * MS), [0; 0]);
        all[0].answered = Some(start + 4_950 * MS);
        assert_eq!(rota.turn(&all, start + 4_950 * MS), [0], "at once");
        rota.over(&all[0].key, Ended::Answered(MS));
        // One that is out is asked whether it is back; another digest was never asked.
        assert_eq!(rota.turn(&all, start + 5_800 * MS), [0; 0]);
        all[0].ejected = true;
        assert_eq!(rota.turn(&all, start + 5_800 * MS), [0]);
        all[0].key.digest = Some([2; 32]);
        assert_eq!(rota.turn(&all, start + 5_801 * MS), [0]);
    }

    #[test]
    fn the_longer_nobody_asks_for_it_the_rarer_it_is_probed() {
        let turns = looks(1, 0, Duration::from_secs(3_600), |_, _| Ended::Answered(MS));
        let seconds: Vec<u64> = turns[0].iter().map(Duration::as_secs).collect();
        assert_eq!(seconds[..8], [0, 5, 10, 20, 40, 80, 160, 320]);
        assert!(turns[0].windows(2).all(|two| two[1] - two[0] <= IDLE.1) && turns[0].len() < 20, "{seconds:?}");
    }

    #[test]
    fn a_slow_model_is_asked_rarely_and_a_single_slow_answer_changes_nothing() {
        let span = Duration::from_secs(300);
        let slow = looks(1, 1, span, |_, _| Ended::Answered(2_000 * MS));
        assert!(slow[0].windows(2).all(|two| two[1] - two[0] >= 40_000 * MS), "{slow:?}");
        assert!(slow[0].len() > 5, "{slow:?}");
        // Nor is one that never answers in time.
        let silent = looks(1, 1, span, |_, _| Ended::GivenUp(10_000 * MS));
        assert!(silent[0].len() <= 3, "{silent:?}");
        let once = looks(1, 1, span, |_, turn| Ended::Answered(if turn % 3 == 1 { 2_000 * MS } else { MS }));
        assert!(longest_wait(&once[0], span) <= 1_500 * MS);
    }

    #[test]
    fn one_without_room_is_asked_again_soon() {
        let mut rota = Rota::default();
        let (mut all, start) = ([known(0)], Instant::now());
        for look in 0..5 {
            assert_eq!(rota.turn(&all, start + LOOK * look), [0]);
            rota.over(&all[0].key, Ended::NoRoom);
            assert_eq!(rota.turn(&all, start + LOOK * look + LOOK / 2), [0; 0]);
        }
        assert_eq!(rota.turn(&all, start + LOOK * 5), [0]);
        rota.over(&all[0].key, Ended::Answered(1_000 * MS));
        // Where an answer takes long, so does the one that has the place.
        all[0].ejected = true;
        assert_eq!(rota.turn(&all, start + LOOK * 5 + 19_000 * MS), [0; 0]);
        assert_eq!(rota.turn(&all, start + LOOK * 5 + 20_000 * MS), [0]);
        rota.over(&all[0].key, Ended::NoRoom);
        assert_eq!(rota.turn(&all, start + LOOK * 5 + 20_500 * MS), [0; 0]);
        assert_eq!(rota.turn(&all, start + LOOK * 5 + 21_000 * MS), [0]);
    }
}
