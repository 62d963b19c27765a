//! One request's attempts, as a machine that its caller drives.

use crate::action::{Action, AttemptId, Event, Failure, Reason};
use crate::call::{Call, Hedging};
use crate::choose::{Ask, Nobody};
use crate::explain::Purpose;
use crate::replica::{Nature, ReplicaId};
use crate::router::{Ending, Router};
use crate::tally::Blame;
use crate::time::{MILLISECOND, NEVER, Nanos, SECOND};
use crate::verdict::Verdict;

/// The most attempts that a request can have.
pub const MAX_ATTEMPTS: usize = 8;

/// Before a request goes to the same replica again, doubled each time.
const SAME_AGAIN: Nanos = 5 * MILLISECOND;
/// An answer that is later than this factor times the hedge's delay, and this span more, is given up where no hedge can
/// go.
const GIVE_UP: (u64, Nanos) = (4, 50 * MILLISECOND);

/// After so long an attempt counts as one that failed, as far as the reserve of the budget is concerned.
const AS_GOOD_AS_FAILED: Nanos = SECOND;

/// One request's attempts. See the [crate's documentation](crate) for how to drive it.
#[derive(Debug)]
pub struct Attempts {
    call: Call,
    sent: [Option<Attempt>; MAX_ATTEMPTS],
    count: u8,
    /// Where the request was, from `tried_from` on.
    replicas: [ReplicaId; MAX_ATTEMPTS],
    tried_from: u8,
    /// Attempts that the caller has yet to reset, one bit each.
    cancel: u8,
    phase: Phase,
    /// When the newest attempt is late.
    late_at: Nanos,
    /// Whether a hedge has its turn then, or giving up the one that is late.
    hedge_next: bool,
    /// Nothing is sent before.
    not_before: Nanos,
    /// What the last failure allows.
    last: LastFailure,
    /// Retries that it took from the budget.
    paid: u8,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    sent_at: Nanos,
    /// How long a hedge waits for it.
    delay: Nanos,
    beside: u32,
    trial: bool,
    state: State,
    /// That delay comes of the replica's own history.
    known: bool,
    head: Head,
    /// The failure that it was counted as.
    blame: Option<Blame>,
    /// How long it has waited for the client's body since it was sent.
    client: Nanos,
}

/// What the head of an attempt's answer meant, as far as that matters once it is over.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Head {
    /// Nothing more than that there is an answer; or none has come.
    Plain,
    /// An error of the caller's or of the module's own, which another replica would give as well.
    Theirs,
    /// It failed with an error status.
    Failed,
    /// It failed, as it says because its graph did.
    Graph,
}

/// Why an attempt that runs is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Another was quicker, or is to be asked in its place, or the client has gone.
    Lost,
    /// The client's time is over.
    Deadline,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Streaming,
    Over,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Open,
    Won(AttemptId),
    Lost(Failure),
    Over,
}

#[derive(Clone, Copy, Debug, Default)]
struct LastFailure {
    /// Another attempt may be made.
    again: bool,
    /// It costs no budget: nothing was sent, or not looked at.
    free: bool,
    overloaded: bool,
    /// A moment later it would be the same there.
    same_later: bool,
    headed: Option<AttemptId>,
}

impl Attempts {
    /// The attempts of one request. Nothing happens before the first [`poll`](Attempts::poll).
    pub fn new(call: Call) -> Attempts {
        Attempts {
            call,
            sent: [None; MAX_ATTEMPTS],
            count: 0,
            replicas: [ReplicaId { slot: u32::MAX, generation: 0 }; MAX_ATTEMPTS],
            tried_from: 0,
            cancel: 0,
            phase: Phase::Open,
            late_at: NEVER,
            hedge_next: true,
            not_before: 0,
            last: LastFailure { again: true, ..LastFailure::default() },
            paid: 0,
        }
    }

    /// The request.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// How many attempts were sent.
    pub fn count(&self) -> u8 {
        self.count
    }

    /// Where an attempt went.
    pub fn replica_of(&self, attempt: AttemptId) -> Option<ReplicaId> {
        self.replicas.get(usize::from(attempt.0)).copied().filter(|_| attempt.0 < self.count)
    }

    /// What to do now. Poll until [`Action::Wait`] or [`Action::Done`] comes; poll again when its time has come or after
    /// an event.
    pub fn poll(&mut self, router: &mut Router, now: Nanos) -> Action {
        if matches!(self.phase, Phase::Open) && now >= self.call.deadline {
            self.give_up(router, Why::Deadline, now);
            self.phase = Phase::Lost(self.failure(Reason::Deadline));
        }
        if self.cancel != 0 {
            let index = self.cancel.trailing_zeros() as u8;
            self.cancel &= self.cancel - 1;
            return Action::Cancel { attempt: AttemptId(index) };
        }
        match self.phase {
            Phase::Won(attempt) => {
                self.phase = Phase::Over;
                Action::Finish { attempt }
            }
            Phase::Lost(failure) => {
                self.phase = Phase::Over;
                Action::Fail(failure)
            }
            Phase::Over if self.streaming() => Action::Wait { until: NEVER },
            Phase::Over => Action::Done,
            Phase::Open if self.running() == 0 => self.advance(router, now),
            Phase::Open => self.hurry(router, now),
        }
    }

    /// Something happened to an attempt. Events of attempts that are over change nothing.
    pub fn on(&mut self, router: &mut Router, attempt: AttemptId, event: Event, now: Nanos) {
        let index = usize::from(attempt.0);
        let Some(Some(this)) = self.sent.get(index).copied() else { return };
        match (this.state, event) {
            (State::Over, _) | (State::Running, Event::Head(Verdict::Answer) | Event::Complete) => {}
            (_, Event::Waited { client }) => self.sent[index] = Some(Attempt { client, ..this }),
            (State::Running, Event::Head(Verdict::Module | Verdict::Rejected)) => {
                self.sent[index] = Some(Attempt { head: Head::Theirs, ..this });
            }
            (State::Running, Event::Whole { bytes }) => {
                router.answer_bytes += (bytes as f64 - router.answer_bytes) / 16.0;
                self.win(router, attempt, State::Over, now);
            }
            (State::Running, Event::Overflow) => self.win(router, attempt, State::Streaming, now),
            (State::Running, event) => self.failed(router, attempt, event, now),
            (State::Streaming, Event::Complete | Event::Whole { .. }) => {
                self.end(router, attempt, Ending::Uncounted, now);
                self.leaves_room(router, self.replicas[index], now);
            }
            (State::Streaming, Event::Head(_) | Event::Overflow) => {}
            (State::Streaming, _) => {
                self.end(router, attempt, Ending::Failed { weight: 1.0 }, now);
            }
        }
    }

    /// The client has gone, or the caller drops the request for a reason of its own. Every attempt that runs is over; the
    /// caller resets their streams. Must be called when the machine is dropped before [`Action::Done`]; does nothing after.
    pub fn abandon(&mut self, router: &mut Router, now: Nanos) {
        for index in 0..self.count {
            if self.state_of(index) == State::Streaming {
                self.end(router, AttemptId(index), Ending::Uncounted, now);
            }
        }
        self.give_up(router, Why::Lost, now);
        (self.phase, self.cancel) = (Phase::Over, 0);
    }

    /// Nothing runs: the first attempt, or another, or the end.
    fn advance(&mut self, router: &mut Router, now: Nanos) -> Action {
        if self.count > 0 && (!self.last.again || self.count >= limit(router)) {
            return self.lose(router, self.exhausted(), now);
        } else if now < self.not_before {
            return Action::Wait { until: self.not_before.min(self.call.deadline) };
        }
        let purpose = if self.count == 0 { Purpose::First } else { Purpose::Retry };
        match self.choose(router, purpose, now) {
            Ok(replica) => {
                let costs = purpose == Purpose::Retry && !self.last.free;
                if costs && !self.pay(router) {
                    let reason = if self.last.overloaded { Reason::Overloaded } else { Reason::Budget };
                    return self.lose(router, reason, now);
                }
                self.send(router, replica, purpose, now)
            }
            Err(nobody) if nobody.tried && self.tried_from < self.count && !self.last.same_later => {
                // Everywhere else is out: the same again, a moment later.
                self.tried_from = self.count;
                self.not_before = now.saturating_add(SAME_AGAIN << self.count.min(8));
                Action::Wait { until: self.not_before.min(self.call.deadline) }
            }
            Err(nobody) => self.nobody(router, nobody, now),
        }
    }

    /// Something runs: if it is late, another attempt beside it or in its place.
    fn hurry(&mut self, router: &mut Router, now: Nanos) -> Action {
        if now >= self.late_at {
            let open = self.call.again() && self.count < limit(router);
            let hedge = std::mem::replace(&mut self.hedge_next, false);
            if hedge {
                let may = open && self.call.hedging != Hedging::Never && router.budgets.left().1 >= 1.0;
                if may && let Ok(replica) = self.choose(router, Purpose::Hedge, now) {
                    router.budgets.take_hedge();
                    return self.send(router, replica, Purpose::Hedge, now);
                }
                self.late_at = self.given_up_at();
            }
            if now >= self.late_at {
                let waited = self.newest().map_or(0, |this| this.waited(now));
                let least = if waited < AS_GOOD_AS_FAILED { router.budgets.kept_retries() } else { 0.0 };
                if open
                    && router.budgets.left().0 >= least.max(1.0)
                    && let Some(replica) = self.instead(router, now)
                {
                    self.pay(router);
                    self.give_up(router, Why::Lost, now);
                    return self.send(router, replica, Purpose::Retry, now);
                }
                // A budget or a replica may come back: look again once it has waited twice as long.
                self.hedge_next = true;
                self.late_at = self.newest().map_or(NEVER, |_| now + waited.max(GIVE_UP.1));
            }
        }
        Action::Wait { until: self.late_at.min(self.call.deadline) }
    }

    /// Whom to ask in place of those that are late: one that was not asked yet, or else one that is well again.
    fn instead(&mut self, router: &mut Router, now: Nanos) -> Option<ReplicaId> {
        match self.choose(router, Purpose::Retry, now) {
            Ok(replica) => Some(replica),
            Err(nobody) if nobody.tried && self.tried_from + 1 < self.count => {
                // The newest is the one that is late; the others may be asked again.
                self.tried_from = self.count - 1;
                self.choose(router, Purpose::Retry, now).ok()
            }
            Err(_) => None,
        }
    }

    fn choose(&self, router: &mut Router, purpose: Purpose, now: Nanos) -> Result<ReplicaId, Nobody> {
        let tried = &self.replicas[usize::from(self.tried_from)..usize::from(self.count)];
        router.choose(&Ask { call: &self.call, tried, purpose, now })
    }

    fn send(&mut self, router: &mut Router, replica: ReplicaId, purpose: Purpose, now: Nanos) -> Action {
        let index = self.count;
        if index == 0 {
            // What nothing is sent for buys no retries.
            router.budgets.request(now);
        }
        let delay = router.hedge_delay(replica);
        let (beside, trial) = router.begin(replica, now);
        let attempt = Attempt {
            sent_at: now,
            delay,
            beside,
            trial,
            state: State::Running,
            known: router.has_history(replica),
            head: Head::Plain,
            blame: None,
            client: 0,
        };
        self.sent[usize::from(index)] = Some(attempt);
        self.replicas[usize::from(index)] = replica;
        self.count += 1;
        self.hedge_next = true;
        self.late_at = if self.call.again() { now.saturating_add(delay) } else { NEVER };
        Action::Send { attempt: AttemptId(index), replica, purpose }
    }

    /// An attempt has the answer: every other one is cancelled.
    fn win(&mut self, router: &mut Router, winner: AttemptId, state: State, now: Nanos) {
        let Some(Some(this)) = self.sent.get_mut(usize::from(winner.0)) else { return };
        this.state = state;
        let ending = match this.head {
            // It says neither that the replica is well nor how quick: an error is quicker than an answer.
            Head::Theirs => Ending::Uncounted,
            _ => Ending::Answered { took: this.waited(now), beside: this.beside },
        };
        let (trial, replica) = (this.trial, self.replicas[usize::from(winner.0)]);
        if this.head == Head::Theirs {
            self.forgive(router, now);
            self.refund(router);
        }
        if state == State::Streaming {
            router.answered(replica, ending, trial, now);
        } else {
            router.end(replica, ending, trial, now);
            self.leaves_room(router, replica, now);
        }
        self.give_up(router, Why::Lost, now);
        self.phase = Phase::Won(winner);
    }

    /// The whole answer came: a place of the tenant's is free there.
    fn leaves_room(&self, router: &mut Router, replica: ReplicaId, now: Nanos) {
        if let Some(tenant) = &self.call.tenant {
            router.has_room_for(replica, tenant, now);
        }
    }

    fn failed(&mut self, router: &mut Router, attempt: AttemptId, event: Event, now: Nanos) {
        let index = usize::from(attempt.0);
        let Some(Some(this)) = self.sent.get_mut(index) else { return };
        let waited = this.waited(now);
        let mut again = self.call.again();
        self.last = LastFailure { again, headed: self.last.headed, ..LastFailure::default() };
        let blame = Ending::Failed { weight: 1.0 };
        let ending = match event {
            Event::ConnectFailed => {
                (self.last.again, self.last.free) = (true, true);
                blame
            }
            Event::Refused => {
                (self.last.again, self.last.free) = (self.call.replayable, true);
                blame
            }
            Event::Head(Verdict::Overloaded { until }) => {
                (self.last.overloaded, self.last.headed) = (true, Some(attempt));
                Ending::Overloaded { sent: this.sent_at, beside: this.beside, until }
            }
            Event::Head(Verdict::OverShare { until }) => {
                if let Some(tenant) = &self.call.tenant {
                    router.over_share(self.replicas[index], tenant, until, now);
                }
                (self.last.overloaded, self.last.same_later, self.last.headed) = (true, true, Some(attempt));
                Ending::Uncounted
            }
            Event::Head(Verdict::NotHere) => {
                // A gateway looks before anything runs. What another server runs may itself say that something is not there.
                let replica = router.replica(self.replicas[index]);
                let ran_nothing = replica.is_some_and(|replica| replica.nature != Nature::Foreign);
                let may = if ran_nothing { self.call.replayable } else { again };
                (self.last.again, self.last.headed) = (may, Some(attempt));
                Ending::NotHere
            }
            Event::Head(Verdict::Unlawful) => {
                (self.last.again, self.last.free) = (self.call.replayable, true);
                (self.last.same_later, self.last.headed) = (true, Some(attempt));
                Ending::Uncounted
            }
            Event::Head(verdict @ (Verdict::Failed | Verdict::Graph)) => {
                let head = if verdict == Verdict::Graph { Head::Graph } else { Head::Failed };
                (this.head, self.last.headed) = (head, Some(attempt));
                blame
            }
            Event::Head(Verdict::TooLate) => {
                let weight = this.lateness(waited, Why::Deadline);
                (this.head, self.last.headed) = (Head::Failed, Some(attempt));
                (again, self.last.again) = (false, false);
                Ending::Unanswered { waited, weight }
            }
            Event::TimedOut => Ending::Unanswered { waited, weight: 1.0 },
            _ => blame,
        };
        self.end(router, attempt, ending, now);
        if self.fails_graphs() {
            (again, self.last.again) = (false, false);
        }
        // Whatever still runs is late by now: the next may leave at once.
        (self.late_at, self.hedge_next) = (if again { now } else { NEVER }, true);
    }

    fn end(&mut self, router: &mut Router, attempt: AttemptId, ending: Ending, now: Nanos) {
        let index = usize::from(attempt.0);
        if let Some(Some(this)) = self.sent.get_mut(index) {
            this.state = State::Over;
            this.blame = router.end(self.replicas[index], ending, this.trial, now);
        }
    }

    /// Ends and cancels every attempt that still runs. What that says about a replica depends on nothing but how long
    /// it had been asked, against its own history: one that lost a race while it was not late is not to blame.
    fn give_up(&mut self, router: &mut Router, why: Why, now: Nanos) {
        for index in 0..self.count {
            let Some(Some(this)) = self.sent.get(usize::from(index)) else { continue };
            if this.state == State::Running {
                let waited = this.waited(now);
                let weight = this.lateness(waited, why);
                self.end(router, AttemptId(index), Ending::Unanswered { waited, weight }, now);
                self.cancel |= 1 << index;
            }
        }
    }

    fn nobody(&mut self, router: &mut Router, nobody: Nobody, now: Nanos) -> Action {
        let reason = match nobody {
            Nobody { lawful: false, breach: Some(breach), .. } if self.count == 0 => Reason::Law(breach),
            Nobody { overloaded: true, .. } => Reason::Overloaded,
            _ if self.count == 0 => Reason::NoReplica,
            _ => self.exhausted(),
        };
        self.lose(router, reason, now)
    }

    fn exhausted(&self) -> Reason {
        if self.last.overloaded { Reason::Overloaded } else { Reason::Failed }
    }

    fn lose(&mut self, router: &mut Router, reason: Reason, now: Nanos) -> Action {
        let asked = &self.replicas[..usize::from(self.count)];
        // What one replica alone fails at may be that replica's fault.
        let several = asked.iter().any(|other| Some(other) != asked.first());
        let failed = |attempt: &Attempt| matches!(attempt.head, Head::Failed | Head::Graph);
        if self.fails_graphs() {
            self.forgive(router, now);
            self.refund(router);
        } else if several && self.sent.iter().flatten().all(failed) {
            // They may all be failing, and then the budget is what keeps requests from making it worse.
            self.forgive(router, now);
        }
        let retry_at = if reason == Reason::Overloaded { router.free_at(&self.call, now) } else { None };
        self.phase = Phase::Lost(Failure { retry_at, ..self.failure(reason) });
        self.poll(router, now)
    }

    /// Takes back the failures of those that answered with an error status. A request that every replica answered so, or that
    /// one knows to be wrong itself, is to blame: it must eject nobody.
    fn forgive(&mut self, router: &mut Router, now: Nanos) {
        for (attempt, replica) in self.sent.iter().flatten().zip(&self.replicas) {
            if let (Head::Failed | Head::Graph, Some(blame)) = (attempt.head, attempt.blame) {
                router.forgive(*replica, blame, now);
            }
        }
    }

    /// Whether it is the input that graphs fail at: two replicas say so, and one of them had answered another request
    /// just before. Where they answer nothing it may be they.
    fn fails_graphs(&self) -> bool {
        let failed = || self.sent.iter().flatten().zip(&self.replicas).filter(|(one, _)| one.head == Head::Graph);
        let several = failed().any(|(_, other)| failed().next().is_some_and(|(_, first)| first != other));
        several && failed().any(|(one, _)| one.blame.is_some_and(|blame| blame.follows_an_answer()))
    }

    /// Takes one more attempt from the budget, if there is one.
    fn pay(&mut self, router: &Router) -> bool {
        let taken = router.budgets.take_retry();
        self.paid += u8::from(taken);
        taken
    }

    /// The request is known to be to blame: what it took from the budget is there for those of others.
    fn refund(&mut self, router: &Router) {
        router.budgets.give_back_retries(std::mem::take(&mut self.paid));
    }

    fn failure(&self, reason: Reason) -> Failure {
        Failure { reason, retry_at: None, attempt: self.last.headed, attempts: self.count }
    }

    fn newest(&self) -> Option<Attempt> {
        self.count.checked_sub(1).and_then(|index| self.sent.get(usize::from(index)).copied().flatten())
    }

    fn given_up_at(&self) -> Nanos {
        self.newest().map_or(NEVER, |this| {
            let wait = this.delay.saturating_mul(GIVE_UP.0).saturating_add(GIVE_UP.1);
            this.sent_at.saturating_add(wait)
        })
    }

    fn state_of(&self, index: u8) -> State {
        self.sent.get(usize::from(index)).copied().flatten().map_or(State::Over, |this| this.state)
    }

    fn running(&self) -> usize {
        (0..self.count).filter(|index| self.state_of(*index) == State::Running).count()
    }

    fn streaming(&self) -> bool {
        (0..self.count).any(|index| self.state_of(index) == State::Streaming)
    }
}

impl Attempt {
    /// How long its replica has been waited for.
    fn waited(&self, now: Nanos) -> Nanos {
        now.saturating_sub(self.sent_at).saturating_sub(self.client)
    }

    /// How much it counts against its replica that it was asked for so long in vain: nothing up to the hedge's delay, a whole
    /// failure from twice that. How long the client would wait is the client's choice, so that a deadline counts by nothing but
    /// the replica's own history.
    fn lateness(&self, waited: Nanos, why: Why) -> f64 {
        if why == Why::Deadline && !self.known {
            return 0.0;
        }
        (waited as f64 / self.delay.max(1) as f64 - 1.0).clamp(0.0, 1.0)
    }
}

/// The most attempts that a request may have now.
fn limit(router: &Router) -> u8 {
    router.settings.attempts.clamp(1, MAX_ATTEMPTS as u8)
}
