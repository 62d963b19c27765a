//! The one loop in which a request goes from replica to replica: it does what [`Attempts`] says, and tells it what came
//! of that. It knows neither HTTP nor sandboxes: an attempt is a future, and dropping one cancels what it does.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};
use windrose_route::{
    Action, AttemptId, Attempts, Budgets, Call, Event, Failure, NEVER, Nanos, Purpose, ReplicaId, Router, Verdict,
};

use super::upload::Upload;

/// The router of one model, as all its requests share it. It is locked for a microsecond at a time.
pub struct Replicas {
    router: Mutex<Router>,
    origin: Instant,
    /// Timers that no request waits for now. They stay as they are: to put one off costs far less than to begin a new
    /// one that is earlier than all others, which wakes the runtime's driver.
    timers: Mutex<Vec<Pin<Box<Sleep>>>>,
}

/// Timers that are kept.
const TIMERS: usize = 64;

/// A timer for one request.
struct Timer<'a> {
    replicas: &'a Replicas,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// One attempt that runs.
pub type Running<'a, T> = Pin<Box<dyn Future<Output = Outcome<T>> + Send + 'a>>;

/// How an attempt ended, as far as it can be told before the client gets anything.
#[derive(Debug)]
pub enum Outcome<T> {
    /// Nothing was sent.
    ConnectFailed,
    /// It was sent, and the server says that it did not look at it.
    Refused,
    /// It broke off before the head of an answer.
    Reset,
    /// The answer broke off.
    Cut,
    /// An answer.
    Answer {
        /// What its head says.
        verdict: Verdict,
        /// Bytes of the body, where all of it is held; `None` where it goes on as it comes.
        whole: Option<u64>,
        /// The answer.
        answer: T,
    },
}

/// The answer that the client gets.
pub struct Won<T> {
    /// The answer.
    pub answer: T,
    /// Who gave it.
    pub replica: ReplicaId,
    /// How many attempts there were.
    pub attempts: u8,
    /// Where the body still comes: whoever passes it on tells the end.
    pub stream: Option<Stream>,
}

/// Why there is no answer, and that of the last attempt that had one.
pub struct Lost<T> {
    /// Why.
    pub failure: Failure,
    /// An error that a replica answered with.
    pub answer: Option<T>,
}

/// An answer whose body is still coming. Dropped without [`Stream::end`], the client has gone, or its
/// time is over.
pub struct Stream {
    attempt: AttemptId,
    machine: Machine,
}

// === impl Replicas ===

impl Replicas {
    /// Shares a router.
    pub fn new(router: Router) -> Arc<Replicas> {
        Arc::new(Replicas { router: Mutex::new(router), origin: Instant::now(), timers: Mutex::default() })
    }

    /// Shares the router of another version of the same model: with its budgets, and so with its time.
    pub fn beside(&self, make: impl FnOnce(Budgets) -> Router) -> Arc<Replicas> {
        let router = make(self.lock().shared_budgets());
        Arc::new(Replicas { router: Mutex::new(router), origin: self.origin, timers: Mutex::default() })
    }

    /// The router. Nobody may wait while holding it.
    pub fn lock(&self) -> MutexGuard<'_, Router> {
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time as the router knows it.
    pub fn now(&self) -> Nanos {
        self.at(Instant::now())
    }

    /// A point in time as the router knows it.
    pub fn at(&self, instant: Instant) -> Nanos {
        u64::try_from(instant.saturating_duration_since(self.origin).as_nanos()).unwrap_or(NEVER)
    }

    fn instant(&self, at: Nanos) -> Instant {
        self.origin + Duration::from_nanos(at)
    }

    fn timers(&self) -> MutexGuard<'_, Vec<Pin<Box<Sleep>>>> {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Timer<'_> {
    /// The timer, when it is to end then.
    fn at(&mut self, until: Nanos) -> Pin<&mut Sleep> {
        let end = self.replicas.instant(until);
        let kept = || self.replicas.timers().pop();
        let mut sleep = self.sleep.get_or_insert_with(|| kept().unwrap_or_else(|| Box::pin(sleep_until(end)))).as_mut();
        if sleep.deadline() != end {
            sleep.as_mut().reset(end);
        }
        sleep
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        let Some(sleep) = self.sleep.take() else { return };
        let mut timers = self.replicas.timers();
        if timers.len() < TIMERS {
            timers.push(sleep);
        }
    }
}

// === the loop ===

/// A request's attempts, abandoned when it is dropped before its end.
struct Machine {
    replicas: Arc<Replicas>,
    attempts: Attempts,
    /// The waits for its client's body, where that is not held.
    upload: Option<Arc<Upload>>,
}

impl Machine {
    fn poll(&mut self) -> Action {
        self.step(Attempts::poll)
    }

    fn tell(&mut self, attempt: AttemptId, event: Event) {
        self.step(|attempts, router, now| attempts.on(router, attempt, event, now));
    }

    /// Takes a step, once it is known what of the attempt's time was the client's. A body that is not held goes to one attempt,
    /// after which there is no other.
    fn step<T>(&mut self, take: impl FnOnce(&mut Attempts, &mut Router, Nanos) -> T) -> T {
        let (mut router, now) = (self.replicas.lock(), self.replicas.now());
        if let (Some(upload), Some(last)) = (&self.upload, self.attempts.count().checked_sub(1)) {
            let client = u64::try_from(upload.waited().as_nanos()).unwrap_or(NEVER);
            self.attempts.on(&mut router, AttemptId(last), Event::Waited { client }, now);
        }
        take(&mut self.attempts, &mut router, now)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.step(Attempts::abandon);
    }
}

/// Runs a request to its answer. `upload` are the waits for a body that is not held. `start` begins an attempt at a replica; it
/// is told the attempt's number and what it is for.
///
/// # Errors
/// When no replica may be asked, or none that was asked answered in time.
pub async fn run<'a, T: Send>(
    replicas: &Arc<Replicas>,
    call: Call,
    upload: Option<Arc<Upload>>,
    mut start: impl FnMut(ReplicaId, u8, Purpose) -> Running<'a, T>,
) -> Result<Won<T>, Lost<T>> {
    let mut machine = Machine { replicas: replicas.clone(), attempts: Attempts::new(call), upload };
    let mut running: Vec<(AttemptId, Running<'a, T>)> = Vec::with_capacity(1);
    let mut answers: Vec<(AttemptId, Option<u64>, T)> = Vec::new();
    let mut timer = Timer { replicas, sleep: None };
    loop {
        match machine.poll() {
            Action::Send { attempt, replica, purpose } => running.push((attempt, start(replica, attempt.0, purpose))),
            Action::Cancel { attempt } => running.retain(|(id, _)| *id != attempt),
            Action::Wait { until } => {
                let Some((attempt, outcome)) = next(&mut running, &mut timer, until).await else {
                    continue;
                };
                judge(&mut machine, attempt, outcome, &mut answers);
            }
            Action::Finish { attempt } => {
                let replica = machine.attempts.replica_of(attempt);
                let Some(found) = answers.iter().position(|(id, ..)| *id == attempt) else { continue };
                let (_, whole, answer) = answers.swap_remove(found);
                let attempts = machine.attempts.count();
                let Some(replica) = replica else { continue };
                let stream = whole.is_none().then_some(Stream { attempt, machine });
                return Ok(Won { answer, replica, attempts, stream });
            }
            Action::Fail(failure) => {
                let at = failure.attempt.and_then(|id| answers.iter().position(|(other, ..)| *other == id));
                return Err(Lost { failure, answer: at.map(|at| answers.swap_remove(at).2) });
            }
            Action::Done => {
                let failure =
                    Failure { reason: windrose_route::Reason::Failed, retry_at: None, attempt: None, attempts: 0 };
                return Err(Lost { failure, answer: None });
            }
        }
    }
}

/// Tells the machine what came of an attempt; keeps the answer, where there is one.
fn judge<T>(
    machine: &mut Machine,
    attempt: AttemptId,
    outcome: Outcome<T>,
    answers: &mut Vec<(AttemptId, Option<u64>, T)>,
) {
    let event = match outcome {
        Outcome::ConnectFailed => Event::ConnectFailed,
        Outcome::Refused => Event::Refused,
        Outcome::Reset => Event::Reset,
        Outcome::Cut => Event::Cut,
        Outcome::Answer { verdict, whole, answer } => {
            answers.push((attempt, whole, answer));
            machine.tell(attempt, Event::Head(verdict));
            whole.map_or(Event::Overflow, |bytes| Event::Whole { bytes })
        }
    };
    machine.tell(attempt, event);
}

/// The next attempt that ends; `None` when `until` comes first.
async fn next<T>(
    running: &mut Vec<(AttemptId, Running<'_, T>)>,
    timer: &mut Timer<'_>,
    until: Nanos,
) -> Option<(AttemptId, Outcome<T>)> {
    let mut timer = (until != NEVER).then(|| timer.at(until));
    poll_fn(|cx| {
        for at in 0..running.len() {
            if let Poll::Ready(outcome) = running[at].1.as_mut().poll(cx) {
                let (attempt, _) = running.swap_remove(at);
                return Poll::Ready(Some((attempt, outcome)));
            }
        }
        timer.as_mut().map_or(Poll::Pending, |timer| timer.as_mut().poll(cx).map(|()| None))
    })
    .await
}

// === impl Stream ===

impl Stream {
    /// The body came to its end, or broke off.
    pub fn end(mut self, complete: bool) {
        self.machine.tell(self.attempt, if complete { Event::Complete } else { Event::Cut });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use windrose_route::{Grants, MILLISECOND, Nature, Price, Random, Replica, SECOND, Serves, Settings, Site};

    use super::*;

    fn replicas(names: &[&str]) -> Arc<Replicas> {
        let mut router = Router::new(Settings { digests: vec![[1; 32]], ..Settings::default() }, Random::seeded(7));
        let replica = |(at, name): (usize, &&str)| Replica {
            site: Arc::new(Site {
                name: Arc::from(*name),
                cloud: "c".into(),
                region: "r".into(),
                jurisdiction: None,
                price: Price::default(),
            }),
            nature: Nature::Peer,
            serves: Serves::Digest([1; 32]),
            grants: Grants::NONE,
            distance: (1 + 20 * at as u64) * MILLISECOND,
            weight: 1,
        };
        router.update(names.iter().enumerate().map(replica).collect(), 0);
        Replicas::new(router)
    }

    fn call(replicas: &Replicas) -> Call {
        Call::until(replicas.now() + 10 * SECOND)
    }

    fn answer(text: &str) -> Outcome<String> {
        Outcome::Answer { verdict: Verdict::Answer, whole: Some(1), answer: text.to_owned() }
    }

    fn in_flight(replicas: &Replicas) -> u32 {
        let router = replicas.lock();
        router.ids().filter_map(|id| router.standing(id)).map(|standing| standing.in_flight).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_goes_on_to_the_next() {
        let replicas = replicas(&["near", "far"]);
        for (at, broken) in ["connect", "refused", "reset", "cut"].into_iter().enumerate() {
            let won = run(&replicas, call(&replicas), None, |_, attempt, _| {
                Box::pin(std::future::ready(match (attempt, at) {
                    (0, 0) => Outcome::ConnectFailed,
                    (0, 1) => Outcome::Refused,
                    (0, 2) => Outcome::Reset,
                    (0, _) => Outcome::Cut,
                    _ => answer("good"),
                }))
            });
            let won = won.await.unwrap_or_else(|_| panic!("{broken}"));
            assert_eq!((won.answer.as_str(), won.attempts), ("good", 2));
            assert!(won.stream.is_none());
        }
        assert_eq!(in_flight(&replicas), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_raced_and_the_loser_dropped() {
        struct Gone<'a>(&'a AtomicUsize);
        impl Drop for Gone<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let replicas = replicas(&["near", "far"]);
        let gone = AtomicUsize::new(0);
        let won = run(&replicas, call(&replicas), None, |_, attempt, purpose| {
            let gone = Gone(&gone);
            Box::pin(async move {
                let _gone = gone;
                if attempt == 0 {
                    std::future::pending::<()>().await;
                }
                assert_eq!(purpose, Purpose::Hedge);
                answer("second")
            })
        });
        assert_eq!(won.await.ok().map(|won| won.answer).as_deref(), Some("second"));
        assert_eq!(gone.load(Ordering::Relaxed), 2);
        assert_eq!(in_flight(&replicas), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_leaves_nothing_in_flight() {
        let replicas = replicas(&["near"]);
        let asked = run::<String>(&replicas, call(&replicas), None, |_, _, _| Box::pin(std::future::pending()));
        assert!(tokio::time::timeout(Duration::from_millis(5), asked).await.is_err());
        assert_eq!(in_flight(&replicas), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_in_flight_until_its_end() {
        let replicas = replicas(&["near"]);
        let streams = || {
            run(&replicas, call(&replicas), None, |_, _, _| {
                let outcome = Outcome::Answer { verdict: Verdict::Answer, whole: None, answer: "begins" };
                Box::pin(std::future::ready(outcome))
            })
        };
        for complete in [Some(true), Some(false), None] {
            let stream = streams().await.ok().and_then(|won| won.stream);
            assert_eq!(in_flight(&replicas), 1);
            match (stream, complete) {
                (Some(stream), Some(complete)) => stream.end(complete),
                (stream, _) => drop(stream),
            }
            assert_eq!(in_flight(&replicas), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_client_takes_to_send_its_body_is_not_the_replicas_time() {
        let replicas = replicas(&["near"]);
        let latency = || {
            let router = replicas.lock();
            router.find("near").and_then(|id| router.standing(id)).and_then(|standing| standing.latency)
        };
        let once = || Call { replayable: false, ..call(&replicas) };
        let upload = Arc::new(Upload::default());
        let sends = |upload: &Arc<Upload>| -> Running<'static, String> {
            let upload = upload.clone();
            Box::pin(async move {
                upload.looked(false);
                tokio::time::sleep(Duration::from_secs(7)).await;
                upload.looked(true);
                tokio::time::sleep(Duration::from_millis(20)).await;
                answer("good")
            })
        };
        assert!(run(&replicas, once(), Some(upload.clone()), |_, _, _| sends(&upload)).await.is_ok());
        assert!(latency().is_some_and(|took| (20 * MILLISECOND..23 * MILLISECOND).contains(&took)), "{:?}", latency());
        // Nor where the client gives up before it has sent all, or its time is over.
        for patience in [3, 20] {
            let upload = Arc::new(Upload::default());
            let never = run::<String>(&replicas, once(), Some(upload.clone()), |_, _, _| {
                upload.looked(false);
                Box::pin(std::future::pending())
            });
            let _ = tokio::time::timeout(Duration::from_secs(patience), never).await;
            assert!(latency().is_some_and(|took| took < 23 * MILLISECOND), "{patience}: {:?}", latency());
        }
        // What a replica takes that does not read is its own.
        let silent = run::<String>(&replicas, once(), Some(Arc::default()), |_, _, _| Box::pin(std::future::pending()));
        assert!(silent.await.is_err());
        assert!(latency().is_some_and(|took| took >= 10 * SECOND), "{:?}", latency());
    }

    #[tokio::test(start_paused = true)]
    async fn versions_of_a_model_have_one_time_and_one_budget() {
        let old = replicas(&["near", "far"]);
        tokio::time::advance(Duration::from_secs(5)).await;
        let new = old.beside(|budgets| Router::sharing(Settings::default(), Random::seeded(7), budgets));
        assert_eq!((old.now(), new.now()), (5 * SECOND, 5 * SECOND));
        let before = new.lock().budgets().0;
        let lost = run(&old, call(&old), None, |_, _, _| Box::pin(std::future::ready(Outcome::<()>::Reset)));
        assert!(lost.await.is_err());
        assert!(new.lock().budgets().0 < before);
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_the_last_error_is_handed_back() {
        let replicas = replicas(&["near", "far"]);
        let lost = run(&replicas, call(&replicas), None, |_, attempt, _| {
            let answer = format!("error {attempt}");
            Box::pin(std::future::ready(Outcome::Answer { verdict: Verdict::Failed, whole: Some(1), answer }))
        });
        let lost = lost.await.err().unwrap();
        assert!(lost.answer.is_some_and(|answer| answer.starts_with("error ")) && lost.failure.attempts >= 2);
    }
}
