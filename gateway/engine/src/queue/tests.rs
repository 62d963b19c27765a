//! The queue without workers: what comes out when, in which company.

mod users;

use std::ops::Deref;

use proptest::prelude::*;

use super::*;
use crate::{Evict, Held};

const BOUNDS: Bounds = Bounds { jobs: 8, wait: Some(Duration::from_secs(1)), workers: 1 };

/// A queue with one user, whose jobs all are.
struct Used {
    queue: Queue,
    user: Arc<User>,
}

impl Used {
    fn new(bounds: Bounds, cores: Option<&Arc<Turnstile>>, max_rows: usize, delay: Duration) -> Used {
        let (queue, user) = (Queue::new(cores.cloned()), user(bounds, max_rows, delay));
        Used { queue, user }
    }

    fn push(&self, waiting: Waiting) -> Result<Ticket, EngineError> {
        self.queue.push(Waiting { user: self.user.clone(), ..waiting })
    }
}

impl Deref for Used {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.queue
    }
}

fn user(bounds: Bounds, max_rows: usize, delay: Duration) -> Arc<User> {
    let user = User::new(bounds, None);
    user.set_policy(BatchPolicy { max_rows, delay });
    Arc::new(user)
}

/// A queue that gathers up to `max_rows` at once, with delay if it is not zero.
fn queue(bounds: Bounds, max_rows: usize, delay: Duration) -> Used {
    Used::new(bounds, None, max_rows, delay)
}

/// A job of `rows` rows of `width`, and where its answer comes.
fn job(tenant: &str, rows: usize, width: usize) -> (Waiting, oneshot::Receiver<Answer>) {
    let (reply, answer) = oneshot::channel();
    let inputs = vec![Tensor::from_vec([rows, width], vec![0f32; rows * width]).expect("rows")];
    let job = Checked { inputs, outputs: vec![0], rows: Some(rows) };
    let share = Share::default();
    let user = user(BOUNDS, 1, Duration::ZERO);
    (Waiting { job, tenant: tenant.into(), share, user, deadline: None, reply, since: Instant::now() }, answer)
}

/// As [`job`], in the name of a model of some weight.
fn weighted(name: &str, weight: u32) -> (Waiting, oneshot::Receiver<Answer>) {
    named("t", name, weight)
}

fn named(tenant: &str, name: &str, weight: u32) -> (Waiting, oneshot::Receiver<Answer>) {
    let (mut waiting, answer) = job(tenant, 1, 1);
    waiting.share = Share { name: name.into(), weight };
    (waiting, answer)
}

fn take(queue: &Queue) -> Batch {
    let mut batch = Batch::new();
    assert!(queue.take(&mut batch, &mut None, Post::Regular));
    batch
}

fn widths(batch: &Batch) -> Vec<usize> {
    batch.jobs.iter().map(|waiting| waiting.job.inputs[0].shape()[1]).collect()
}

#[test]
fn jobs_of_one_key_come_out_together_and_others_keep_their_place() {
    let queue = queue(BOUNDS, 4, Duration::ZERO);
    let mut answers = Vec::new();
    for width in [1, 2, 1, 1, 2, 1, 1] {
        let (waiting, answer) = job("t", 1, width);
        queue.push(waiting).expect("room");
        answers.push(answer);
    }
    for (expected, reason) in [(vec![1; 4], Released::Full), (vec![2; 2], Released::Idle), (vec![1], Released::Idle)] {
        let batch = take(&queue);
        assert_eq!((widths(&batch), batch.released), (expected, Some(reason)));
    }
    assert_eq!(queue.len(), 0);
    queue.close();
    assert!(!queue.take(&mut Batch::new(), &mut None, Post::Regular));
}

#[test]
fn tenants_share_no_batch_and_models_of_one_tenant_may() {
    let queue = queue(BOUNDS, 8, Duration::ZERO);
    let mut answers = Vec::new();
    for tenant in ["a", "b", "a", "b"] {
        let (waiting, answer) = job(tenant, 1, 1);
        queue.push(waiting).expect("room");
        answers.push(answer);
    }
    for tenant in ["a", "b"] {
        let batch = take(&queue);
        assert_eq!(batch.jobs.len(), 2);
        assert!(batch.jobs.iter().all(|waiting| &*waiting.tenant == tenant));
    }
    for name in ["x", "y", "x"] {
        let (waiting, answer) = weighted(name, 1);
        queue.push(waiting).expect("room");
        answers.push(answer);
    }
    assert_eq!(take(&queue).jobs.len(), 3);
}

#[test]
fn a_caller_that_was_idle_gets_a_worker_of_its_own_while_others_have_the_cores() {
    let turnstile = Turnstile::new(1);
    let queue = Used::new(Bounds { jobs: 100, ..BOUNDS }, Some(&turnstile), 4, Duration::ZERO);
    let mut answers = Vec::new();
    let mut push = |name: &str| {
        let (waiting, answer) = weighted(name, 1);
        queue.push(waiting).expect("room");
        answers.push(answer);
    };
    let (mut regular, mut prompt) = (Some(Gate::new(&turnstile, 1)), Some(Gate::new(&turnstile, 1)));
    let names = |batch: &Batch| batch.jobs.iter().map(|w| w.share.name.to_string()).collect::<Vec<_>>();
    let mut batch = Batch::new();
    let mut take = |gate: &mut Option<Gate>, post| {
        for charge in batch.charges.drain(..) {
            gate.as_mut().expect("a gate").charge(&charge.account, Duration::from_millis(5), (1, 1), charge.weight);
        }
        batch.jobs.clear();
        assert!(queue.take(&mut batch, gate, post));
        names(&batch)
    };
    (0..9).for_each(|_| push("flood"));
    assert_eq!(take(&mut regular, Post::Regular), ["flood"; 4]);
    assert_eq!(take(&mut regular, Post::Regular), ["flood"; 4], "it has used its share, and nobody else wants one");
    push("calm");
    push("flood");
    assert!(turnstile.is_used());
    assert_eq!(take(&mut prompt, Post::Prompt), ["calm"], "with nobody else's rows");
    // What it has had counts.
    let plan = |now| matches!(queue.plan(&queue.lock(), now, Post::Prompt), Plan::Park);
    assert!(plan(Instant::now()), "the flood is not for this worker");
    push("calm");
    push("calm");
    assert!(!plan(Instant::now()));
    assert_eq!(take(&mut regular, Post::Regular), ["calm", "calm", "flood", "flood"], "anybody may take it");
    drop(answers);
}

#[test]
fn what_may_run_beside_others_is_left_to_the_prompt_worker() {
    let turnstile = Turnstile::new(1);
    let queue = Arc::new(Used::new(Bounds { jobs: 100, ..BOUNDS }, Some(&turnstile), 4, Duration::ZERO));
    let mut answers = Vec::new();
    let mut push = |name: &str| {
        let (waiting, answer) = weighted(name, 1);
        queue.push(waiting).expect("room");
        answers.push(answer);
    };
    (0..8).for_each(|_| push("flood"));
    let (mut gate, mut batch) = (Some(Gate::new(&turnstile, 1)), Batch::new());
    let mut run = |gate: &mut Option<Gate>| {
        for charge in batch.charges.drain(..) {
            gate.as_mut().expect("a gate").charge(&charge.account, Duration::from_millis(5), (1, 1), charge.weight);
        }
        batch.jobs.clear();
        assert!(queue.take(&mut batch, gate, Post::Regular));
        batch.jobs.iter().map(|w| w.share.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(run(&mut gate), ["flood"; 4]);
    push("calm");
    let is_parked = |post| matches!(queue.plan(&queue.lock(), Instant::now(), post), Plan::Park);
    assert!(turnstile.is_full() && !is_parked(Post::Prompt));
    queue.set_prompts(1);
    assert_eq!(run(&mut gate), ["flood"; 4], "with rows of the flood's own");
    assert!(is_parked(Post::Regular), "what is left is not for it");
    let (mut prompt, mut its) = (Some(Gate::new(&turnstile, 1)), Batch::new());
    assert!(queue.take(&mut its, &mut prompt, Post::Prompt) && its.jobs[0].share.name.as_ref() == "calm");
    push("calm");
    assert!(!is_parked(Post::Regular), "the prompt worker has something to do");
    drop(answers);
}

#[test]
fn who_leaves_a_job_to_the_prompt_worker_calls_it() {
    let turnstile = Turnstile::new(1);
    let queue = Arc::new(Used::new(BOUNDS, Some(&turnstile), 1, Duration::ZERO));
    queue.set_prompts(1);
    let [prompt, regular] = [Post::Prompt, Post::Regular].map(|post| {
        let (queue, mut gate) = (queue.clone(), Some(Gate::new(&turnstile, 1)));
        move || queue.take(&mut Batch::new(), &mut gate, post)
    });
    let prompt = std::thread::spawn(prompt);
    while queue.lock().resting == 0 {
        std::thread::yield_now();
    }
    let (waiting, answer) = weighted("calm", 1);
    queue.push(waiting).expect("room");
    assert_eq!(queue.lock().resting, 1, "when it came, nobody had a core");
    let mut other = Gate::new(&turnstile, 1);
    assert!(other.try_pass());
    let regular = std::thread::spawn(regular);
    assert!(prompt.join().expect("a worker"));
    queue.close();
    assert!(!regular.join().expect("a worker"));
    drop(answer);
}

#[test]
fn workers_are_not_dismissed_while_one_runs_what_nobody_waits_for() {
    let queue = Arc::new(queue(BOUNDS, 1, Duration::ZERO));
    let (waiting, answer) = job("t", 1, 1);
    queue.push(waiting).expect("room");
    let mut batch = take(&queue);
    drop(answer);
    // Somebody wants the room, and is told when there is some.
    struct Graph(Arc<Used>, Mutex<Option<Held>>);
    impl Evict for Graph {
        fn last_use(&self) -> u64 {
            0
        }

        fn evict(&self) -> bool {
            self.0.dismiss(|| true) && self.1.lock().expect("no panic").take().is_some()
        }
    }
    let residency = Residency::new(Some(1));
    queue.set_residency(residency.clone());
    let held = Mutex::new(Some(residency.hold(2)));
    let graph: Arc<dyn Evict> = Arc::new(Graph(queue.clone(), held));
    residency.enter(Arc::downgrade(&graph));
    residency.trim();
    assert!(!queue.is_dismissed() && residency.counts().bytes == 2, "its weights are in use");
    batch.jobs.clear();
    assert!(!queue.take(&mut batch, &mut None, Post::Regular));
    assert!(queue.is_dismissed() && residency.counts().bytes == 0);
}

/// Woken for a job that is no longer its own, the prompt worker leaves it to the others.
#[test]
fn no_job_is_left_between_two_workers() {
    let turnstile = Turnstile::new(1);
    let queue = Arc::new(Used::new(Bounds { jobs: 10_000, ..BOUNDS }, Some(&turnstile), 1, Duration::ZERO));
    let done = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = [Post::Regular, Post::Regular, Post::Prompt]
        .map(|post| {
            let (queue, done, mut gate) = (queue.clone(), done.clone(), Some(Gate::new(&turnstile, 1)));
            std::thread::spawn(move || {
                let mut batch = Batch::new();
                while queue.take(&mut batch, &mut gate, post) {
                    for charge in batch.charges.drain(..) {
                        let gate = gate.as_mut().expect("a gate");
                        gate.charge(&charge.account, Duration::from_micros(20), (1, 1), charge.weight);
                    }
                    done.fetch_add(batch.jobs.drain(..).count() as u64, Relaxed);
                }
            })
        })
        .into();
    let mut answers = Vec::new();
    for at in 0..20_000u64 {
        let (waiting, answer) = weighted(["a", "b", "c"][at as usize % 3], 1);
        queue.push(waiting).expect("room");
        answers.push(answer);
        // All is done before the next few come, or not.
        while at % 7 == 0 && done.load(Relaxed) <= at {
            std::thread::yield_now();
        }
    }
    queue.close();
    workers.into_iter().for_each(|worker| worker.join().expect("a worker"));
    assert_eq!((done.load(Relaxed), queue.len()), (20_000, 0));
}

#[test]
fn a_job_that_is_larger_than_a_batch_runs_alone() {
    let queue = queue(BOUNDS, 4, Duration::ZERO);
    let answers: Vec<_> = [(3, 1), (2, 1), (9, 1), (1, 1)]
        .map(|(rows, width)| {
            let (waiting, answer) = job("t", rows, width);
            queue.push(waiting).expect("room");
            answer
        })
        .into();
    let rows = |batch: &Batch| batch.jobs.iter().filter_map(|waiting| waiting.job.rows).collect::<Vec<_>>();
    for expected in [vec![3, 1], vec![2], vec![9]] {
        assert_eq!(rows(&take(&queue)), expected);
    }
    drop(answers);
}

#[test]
fn a_flood_waits_behind_itself() {
    let queue = queue(Bounds { jobs: 100, ..BOUNDS }, 1, Duration::ZERO);
    let mut answers = Vec::new();
    let mut push = |name: &str, weight: u32| {
        let (waiting, answer) = weighted(name, weight);
        queue.push(waiting).expect("room");
        answers.push(answer);
    };
    (0..60).for_each(|_| push("flood", 1));
    (0..10).for_each(|_| push("calm", 1));
    (0..30).for_each(|_| push("heavy", 3));
    let order: Vec<Arc<str>> = (0..50).map(|_| take(&queue).jobs[0].share.name.clone()).collect();
    let count = |name: &str| order.iter().filter(|own| &***own == name).count();
    assert_eq!((count("flood"), count("calm"), count("heavy")), (10, 10, 30));
    // What was idle has saved nothing up: it takes its turn with the others.
    assert!((0..50).all(|_| &*take(&queue).jobs[0].share.name == "flood"));
    push("calm", 1);
    push("calm", 1);
    push("flood", 1);
    push("flood", 1);
    let last: Vec<Arc<str>> = (0..4).map(|_| take(&queue).jobs[0].share.name.clone()).collect();
    assert_eq!(last[..2].iter().filter(|name| &***name == "calm").count(), 1, "{last:?}");
}

#[test]
fn a_full_queue_is_shared_as_the_engine_is() {
    let queue = queue(BOUNDS, 1, Duration::ZERO);
    let mut flood: Vec<_> = (0..8)
        .map(|_| {
            let (waiting, answer) = weighted("flood", 1);
            queue.push(waiting).expect("room");
            answer
        })
        .collect();
    assert_eq!(queue.push(weighted("flood", 1).0), Err(EngineError::QueueFull));
    let calm: Vec<_> = (0..4)
        .map(|_| {
            let (waiting, answer) = weighted("calm", 1);
            queue.push(waiting).expect("the flood makes room");
            answer
        })
        .collect();
    assert_eq!(queue.push(weighted("calm", 1).0), Err(EngineError::QueueFull), "each has half");
    assert_eq!(queue.len(), 8);
    let evicted: Vec<bool> = flood.iter_mut().map(|answer| answer.try_recv().is_ok()).collect();
    assert_eq!(evicted, [false, false, false, false, true, true, true, true], "the newest go");
    drop(calm);
}

#[test]
fn a_tenant_of_many_models_has_one_share() {
    let queue = queue(Bounds { jobs: 100, ..BOUNDS }, 1, Duration::ZERO);
    let mut answers = Vec::new();
    let mut push = |tenant: &str, name: &str, weight: u32| {
        let (waiting, answer) = named(tenant, name, weight);
        let pushed = queue.push(waiting).is_ok();
        answers.push(answer);
        pushed
    };
    for name in ["a", "b", "c", "d"] {
        (0..20).for_each(|_| assert!(push("many", name, if name == "a" { 3 } else { 1 })));
    }
    (0..20).for_each(|_| assert!(push("one", "a", 1)));
    // Nobody has more than half, and the many share theirs by weight.
    assert!((0..30).all(|_| push("one", "a", 1)) && !push("one", "a", 1) && !push("many", "a", 1));
    assert_eq!(queue.len(), 100);
    let order: Vec<_> = (0..36).map(|_| take(&queue).jobs.remove(0)).collect();
    let count = |tenant: &str, name: &str| {
        order.iter().filter(|waiting| &*waiting.tenant == tenant && &*waiting.share.name == name).count()
    };
    assert_eq!(["one", "many"].map(|tenant| count(tenant, "a")), [18, 9]);
    assert_eq!(["b", "c", "d"].map(|name| count("many", name)), [3, 3, 3]);
    // The rows before a job of a third: as many of each tenant as its own.
    let (third, _answer) = named("third", "a", 1);
    assert_eq!(queue.lock().lanes.rows_before(&third), 2);
}

#[test]
fn what_nobody_waits_for_does_not_come_out() {
    let queue = queue(BOUNDS, 8, Duration::ZERO);
    let mut answers = Vec::new();
    for late in [false, true, false, false] {
        let (mut waiting, answer) = job("t", 1, 1);
        waiting.deadline = late.then(Instant::now);
        queue.push(waiting).expect("room");
        answers.push(answer);
    }
    drop(answers.remove(2));
    let batch = take(&queue);
    assert_eq!((batch.jobs.len(), batch.gone.len()), (2, 2));
}

#[test]
fn a_delay_is_kept_and_no_longer_than_it_must() {
    let minute = Duration::from_secs(60);
    let queue = queue(BOUNDS, 4, minute);
    let old = Instant::now().checked_sub(minute).expect("a machine that is up for a minute");
    let mut answers = Vec::new();
    let mut push = |edit: &dyn Fn(&mut Waiting)| {
        let (mut waiting, answer) = job("t", 1, 1);
        edit(&mut waiting);
        queue.push(waiting).expect("room");
        answers.push(answer);
    };
    push(&|waiting| waiting.since = old);
    push(&|_| ());
    let batch = take(&queue);
    assert_eq!((batch.jobs.len(), batch.released), (2, Some(Released::Delay)));
    (0..4).for_each(|_| push(&|_| ()));
    assert_eq!(take(&queue).released, Some(Released::Full));
    queue.observe(1, Duration::from_secs(40));
    push(&|waiting| waiting.deadline = Some(Instant::now() + Duration::from_secs(60)));
    assert_eq!(take(&queue).released, Some(Released::Deadline), "a run takes long: it has to start now");
}

#[test]
fn a_worker_that_waits_for_more_is_woken_when_there_is_enough() {
    let queue = Arc::new(queue(BOUNDS, 2, Duration::from_secs(3600)));
    let worker = std::thread::spawn({
        let queue = queue.clone();
        move || take(&queue).jobs.len()
    });
    let answers = [0; 2].map(|_| {
        let (waiting, answer) = job("t", 1, 1);
        queue.push(waiting).expect("room");
        answer
    });
    assert_eq!(worker.join().expect("the worker"), 2);
    drop(answers);
}

#[test]
fn a_worker_that_waits_for_more_goes_when_it_is_dismissed() {
    let queue = Arc::new(queue(BOUNDS, 4, Duration::from_secs(20)));
    let (waiting, _answer) = job("t", 1, 1);
    let ticket = queue.push(waiting).expect("room");
    let worker = std::thread::spawn({
        let queue = queue.clone();
        move || queue.take(&mut Batch::new(), &mut None, Post::Regular)
    });
    while queue.lock().gathering == 0 {
        std::thread::yield_now();
    }
    assert!(queue.withdraw(ticket));
    let begin = Instant::now();
    assert!(queue.dismiss(|| true));
    assert!(!worker.join().expect("the worker"));
    assert!(begin.elapsed() < Duration::from_secs(10), "it waited for a job that had gone");
}

#[test]
fn workers_that_came_back_go_when_the_others_do_not_come() {
    let queue = Arc::new(queue(BOUNDS, 4, Duration::ZERO));
    assert!(queue.dismiss(|| true) && queue.claims_recall());
    queue.recalled();
    let workers = [Post::Regular, Post::Prompt].map(|post| {
        let queue = queue.clone();
        std::thread::spawn(move || queue.take(&mut Batch::new(), &mut None, post))
    });
    let waiting = || {
        let state = queue.lock();
        state.parked + state.resting
    };
    while waiting() < 2 {
        std::thread::yield_now();
    }
    queue.abandon(&EngineError::NotReady("no thread".into()), || ());
    for worker in workers {
        let end = Instant::now() + Duration::from_secs(20);
        while !worker.is_finished() {
            assert!(Instant::now() < end, "it still waits for jobs");
            std::thread::yield_now();
        }
        assert!(!worker.join().expect("the worker"));
    }
    assert!(queue.claims_recall(), "the next job calls again");
}

#[test]
fn what_would_wait_too_long_is_refused_at_once() {
    let queue = queue(BOUNDS, 1, Duration::ZERO);
    let mut answers = Vec::new();
    let mut push = |deadline: Option<Duration>| {
        let (mut waiting, answer) = job("t", 1, 1);
        waiting.deadline = deadline.map(|after| waiting.since + after);
        answers.push(answer);
        queue.push(waiting).map(|_| ())
    };
    (0..KNOWN).for_each(|_| queue.observe(1, Duration::from_millis(400)));
    let short = Some(Duration::from_millis(100));
    assert_eq!(push(short), Ok(()), "nothing waits before it");
    assert_eq!(push(short), Err(EngineError::QueueLong { millis: 400 }));
    assert_eq!(push(Some(Duration::from_secs(9))), Ok(()));
    assert_eq!(push(None), Ok(()));
    assert_eq!(push(None), Err(EngineError::QueueLong { millis: 1200 }), "longer than any may wait here");
}

#[test]
fn a_flood_makes_only_its_own_wait_long() {
    let queue = queue(Bounds { jobs: 100, ..BOUNDS }, 1, Duration::ZERO);
    (0..KNOWN).for_each(|_| queue.observe(1, Duration::from_millis(100)));
    let mut answers = Vec::new();
    let mut push = |name: &str| {
        let (waiting, answer) = weighted(name, 1);
        answers.push(answer);
        queue.push(waiting).is_ok()
    };
    let flood = (0..30).filter(|_| push("flood")).count();
    assert_eq!(flood, 11, "a second of work");
    assert_eq!((0..30).filter(|_| push("calm")).count(), 5, "half of a second that two share");
}

proptest! {
    /// Whatever comes and goes: each job comes out once or is withdrawn, in batches of one key that fit.
    #[test]
    fn each_job_comes_out_once(
        steps in prop::collection::vec((0..6u8, 0..3usize, 1..5usize, 1..3usize), 1..200),
        max_rows in 1..9usize,
    ) {
        let queue = queue(Bounds { jobs: 40, ..BOUNDS }, max_rows, Duration::ZERO);
        let (mut pushed, mut taken, mut withdrawn, mut evicted) = (0usize, 0usize, 0usize, 0usize);
        let mut tickets = Vec::new();
        let mut answers = Vec::new();
        for (step, tenant, rows, width) in steps {
            match step {
                0..3 => {
                    let (waiting, answer) = job(["a", "b", "c"][tenant], rows, width);
                    if let Ok(ticket) = queue.push(waiting) {
                        pushed += 1;
                        tickets.push(ticket);
                        answers.push(answer);
                    }
                }
                3 => withdrawn += usize::from(tickets.pop().is_some_and(|ticket| queue.withdraw(ticket))),
                _ if queue.len() > 0 => {
                    let batch = take(&queue);
                    taken += batch.jobs.len();
                    let all: usize = batch.jobs.iter().filter_map(|waiting| waiting.job.rows).sum();
                    prop_assert!(all <= max_rows || batch.jobs.len() == 1);
                    let first = &batch.jobs[0];
                    for waiting in &batch.jobs {
                        prop_assert_eq!(&waiting.tenant, &first.tenant);
                        prop_assert_eq!(&waiting.job.inputs[0].shape()[1..], &first.job.inputs[0].shape()[1..]);
                    }
                }
                _ => {}
            }
            evicted += answers.iter_mut().filter_map(|answer| answer.try_recv().ok()).count();
            prop_assert_eq!(pushed, taken + withdrawn + evicted + queue.len());
        }
        while queue.len() > 0 {
            taken += take(&queue).jobs.len();
        }
        prop_assert_eq!(pushed, taken + withdrawn + evicted);
    }
}
