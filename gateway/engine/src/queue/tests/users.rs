//! Several users of one graph, each of whom wants its jobs to wait and run together in another way.

use super::*;
use crate::padding::Pads;
use crate::{DataType, Dim, GraphSpec, Padding, TensorSpec};

/// Queues a job of one row for a user, in the name of a model.
fn of(queue: &Queue, user: &Arc<User>, name: &str) -> oneshot::Receiver<Answer> {
    let (waiting, answer) = weighted(name, 1);
    queue.push(Waiting { user: user.clone(), ..waiting }).expect("room");
    answer
}

fn names(batch: &Batch) -> Vec<&str> {
    batch.jobs.iter().map(|waiting| &*waiting.share.name).collect()
}

#[test]
fn a_batch_is_no_larger_than_any_of_its_users_wants() {
    let queue = Queue::new(None);
    let [large, small, alone] = [8, 3, 1].map(|rows| user(BOUNDS, rows, Duration::ZERO));
    let mut answers = Vec::new();
    for (user, name) in [(&large, "large"), (&large, "large"), (&alone, "alone"), (&small, "small"), (&small, "small")]
    {
        answers.push(of(&queue, user, name));
    }
    let batch = take(&queue);
    assert_eq!((names(&batch), batch.released), (vec!["large", "large", "small"], Some(Released::Full)));
    let batch = take(&queue);
    assert_eq!((names(&batch), batch.released), (vec!["alone"], None));
    assert_eq!(names(&take(&queue)), ["small"]);
    (0..4).for_each(|_| answers.push(of(&queue, &large, "large")));
    answers.push(of(&queue, &small, "small"));
    assert_eq!(names(&take(&queue)).len(), 4, "there is no room for it");
}

#[test]
fn who_waits_for_others_holds_up_nobody_else() {
    let queue = Arc::new(Queue::new(None));
    let hour = Duration::from_secs(3600);
    let [patient, prompt] = [hour, Duration::ZERO].map(|delay| user(BOUNDS, 4, delay));
    let worker = std::thread::spawn({
        let queue = queue.clone();
        move || [take(&queue), take(&queue)].map(|batch| batch.jobs.len())
    });
    let mut answers = vec![of(&queue, &patient, "patient")];
    while queue.lock().gathering == 0 {
        std::thread::yield_now();
    }
    // What runs at once takes along what waits for company.
    answers.push(of(&queue, &prompt, "prompt"));
    while queue.len() > 0 {
        std::thread::yield_now();
    }
    queue.set_policy(&prompt, BatchPolicy::OFF);
    answers.extend([of(&queue, &patient, "patient"), of(&queue, &prompt, "prompt")]);
    assert_eq!(worker.join().expect("the worker"), [2, 1]);
    assert_eq!(queue.of("patient"), 1, "it still waits");
}

/// A job that the prompt worker was woken for and must leave to the others, all of whom wait for company of another's.
#[test]
fn what_the_prompt_worker_leaves_waits_for_nobodys_delay() {
    let turnstile = Turnstile::new(1);
    let queue = Arc::new(Queue::new(Some(turnstile.clone())));
    let [patient, prompt] = [Duration::from_secs(3600), Duration::ZERO].map(|delay| user(BOUNDS, 4, delay));
    let worker = |post| {
        let queue = queue.clone();
        std::thread::spawn(move || queue.take(&mut Batch::new(), &mut None, post))
    };
    let mut answers = vec![of(&queue, &patient, "patient")];
    let regular = worker(Post::Regular);
    while queue.lock().gathering == 0 {
        std::thread::yield_now();
    }
    let mut others = Gate::new(&turnstile, 1);
    assert!(others.try_pass(), "others have the core");
    queue.lock().resting = 1;
    answers.push(of(&queue, &prompt, "prompt"));
    assert_eq!(queue.lock().resting, 0, "it is the prompt worker that was woken");
    // Before that comes, the caller has used its share.
    let account = {
        let state = queue.lock();
        let lane = state.lanes.next_calm(|lane| state.lanes.policy(lane).delay.is_zero());
        lane.and_then(|lane| state.lanes.account(lane)).expect("a calm lane").0
    };
    others.charge(&account, Duration::from_secs(1), (1, 1), 1);
    let resting = worker(Post::Prompt);
    let end = Instant::now() + Duration::from_secs(20);
    while queue.of("prompt") > 0 {
        assert!(Instant::now() < end, "it waits for another's delay");
        std::thread::yield_now();
    }
    assert!(regular.join().expect("the worker"));
    queue.close();
    assert!(!resting.join().expect("the worker"));
    drop(answers);
}

#[test]
fn each_user_has_its_own_bounds() {
    let queue = Queue::new(None);
    let wait = Some(Duration::from_millis(100));
    let [long, short] = [Bounds { jobs: 100, wait: None, ..BOUNDS }, Bounds { jobs: 2, wait, ..BOUNDS }]
        .map(|bounds| user(bounds, 1, Duration::ZERO));
    let mut answers: Vec<_> = (0..50).map(|_| of(&queue, &long, "long")).collect();
    answers.extend([0; 2].map(|_| of(&queue, &short, "short")));
    let push = |user: &Arc<User>| queue.push(Waiting { user: user.clone(), ..weighted("short", 1).0 }).map(|_| ());
    assert_eq!(push(&short), Err(EngineError::QueueFull));
    take(&queue);
    (0..KNOWN).for_each(|_| queue.observe(1, Duration::from_millis(60)));
    assert_eq!((push(&long), queue.len()), (Ok(()), 52));
    assert!(matches!(push(&short), Err(EngineError::QueueLong { .. })));
    drop(answers);
}

#[test]
fn only_who_fills_rows_up_alike_runs_together() {
    let dims = Some(vec![Dim::Symbol("N".into()), Dim::Symbol("T".into())]);
    let x = TensorSpec { name: "x".into(), datatype: DataType::Fp32, shape: dims };
    let spec = GraphSpec { inputs: vec![x], outputs: vec![] };
    let padded = |fill| {
        let padding = Padding { axis: 1, inputs: [("x".into(), fill)].into(), outputs: vec![], step: 16 };
        let user = User::new(BOUNDS, Some(Arc::new(Pads::new(&padding, &spec).expect("pads"))));
        user.set_policy(BatchPolicy { max_rows: 8, delay: Duration::ZERO });
        user.set_padded(true);
        Arc::new(user)
    };
    let queue = Queue::new(None);
    let users = [padded(0), user(BOUNDS, 8, Duration::ZERO), padded(0), padded(1)];
    let mut answers = Vec::new();
    for (width, user) in [3, 3, 5, 3].into_iter().zip(&users) {
        let (waiting, answer) = job("t", 1, width);
        queue.push(Waiting { user: user.clone(), ..waiting }).expect("room");
        answers.push(answer);
    }
    assert_eq!([0; 3].map(|_| widths(&take(&queue))), [vec![3, 5], vec![3], vec![3]]);
    users[2].set_padded(false);
    for user in [&users[1], &users[2]] {
        answers.push(of(&queue, user, "alike"));
    }
    assert_eq!(take(&queue).jobs.len(), 2, "neither is filled up");
}
