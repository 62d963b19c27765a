//! Batches in real engines: every row is different, and every caller checks its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use windrose_engine::{
    BatchPolicy, EngineChoice, EngineError, Graph, GraphOptions, Isolation, Job, Released, Share, Tensor,
};

use crate::setup::{backends, engines, job, onnx, run_one};

/// Numbers that look random; the seed is printed by the test.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }
}

fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    let seed = std::env::var("WINDROSE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(now.as_nanos() as u64) | 1;
    eprintln!("WINDROSE_SEED={seed}");
    seed
}

fn batched(engine: EngineChoice, name: &str, sessions: usize, policy: BatchPolicy) -> Graph {
    let options = GraphOptions { engine, sessions: Some(sessions), queue: Some(65_536), ..Default::default() };
    let graph = engines().load(onnx(name), &options).expect("a graph");
    graph.set_batching(policy);
    graph
}

/// Rows of one caller. Those of all fit into the whole numbers that a float tells apart.
const STRETCH: usize = (1 << 22) / CALLERS;

/// Callers at the same time.
const CALLERS: usize = 48;

/// Rows of the graph `rows`: numbers that no other row has, and which of 8 rows of a table is added to each.
fn rows(first: usize, count: usize) -> (Job, Vec<f32>) {
    assert!((first + count) * 4 <= 1 << 24, "a float would round them");
    let x: Vec<f32> = (0..count * 4).map(|at| (first * 4 + at) as f32).collect();
    let ids: Vec<i64> = (0..count).map(|at| ((first + at) % 8) as i64).collect();
    let sums = x.iter().enumerate().map(|(at, x)| x + (ids[at / 4] * 40 + (at % 4) as i64 * 10) as f32).collect();
    let inputs = vec![
        ("x", Tensor::from_vec([count, 4], x).expect("rows")),
        ("ids", Tensor::from_vec([count], ids).expect("ids")),
    ];
    (job(inputs), sums)
}

/// A job that the graph fails on, whoever runs with it.
fn poison() -> Job {
    let x = Tensor::from_vec([1, 4], vec![0f32; 4]).expect("a row");
    job(vec![("x", x), ("ids", Tensor::from_vec([1], vec![8i64]).expect("an id"))])
}

/// Graphs whose rows can be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Net {
    /// One output, and inputs that fail.
    Rows,
    /// Two outputs, of which a job may ask for one.
    TwoInTwoOut,
    /// Byte strings, for engines that have them.
    Words,
}

/// A graph's outputs.
type Outputs = Vec<(String, Tensor)>;

impl Net {
    fn name(self) -> &'static str {
        match self {
            Net::Rows => "rows",
            Net::TwoInTwoOut => "two_in_two_out",
            Net::Words => "strings_upper",
        }
    }

    /// Rows that no other job has, and all that the graph makes of them.
    fn rows(self, first: usize, count: usize) -> (Job, Outputs) {
        let all = first..first + count;
        match self {
            Net::Rows => {
                let (job, sums) = rows(first, count);
                (job, vec![("y".into(), Tensor::from_vec([count, 4], sums).expect("sums"))])
            }
            Net::TwoInTwoOut => {
                assert!((first + count) * 3 <= 1 << 24, "a float would round them");
                let pixels = |times: usize| {
                    let values: Vec<f32> = (first * 3..(first + count) * 3).map(|at| (at * times) as f32).collect();
                    Tensor::from_vec([count, 3], values).expect("pixels")
                };
                let labels = |more: usize| {
                    let values: Vec<i64> = all.clone().map(|at| (at + more) as i64).collect();
                    Tensor::from_vec([count], values).expect("labels")
                };
                let outputs = vec![("doubled".into(), pixels(2)), ("next".into(), labels(1))];
                (job(vec![("pixels", pixels(1)), ("labels", labels(0))]), outputs)
            }
            Net::Words => {
                let words: Vec<String> = all.map(|at| format!("{}word {at}", "long ".repeat(at % 5))).collect();
                let upper: Vec<String> = words.iter().map(|word| word.to_uppercase()).collect();
                let strings = |words: &[String]| Tensor::from_strings([count], words).expect("strings");
                (job(vec![("words", strings(&words))]), vec![("upper".into(), strings(&upper))])
            }
        }
    }

    /// A job that the graph fails on, where there is one.
    fn poison(self) -> Option<Job> {
        match self {
            Net::Rows => Some(poison()),
            Net::TwoInTwoOut => None,
            Net::Words => {
                let no_text = Tensor::from_strings([1], &[&b"\xff\xfe"[..]]).expect("bytes");
                Some(job(vec![("words", no_text)]))
            }
        }
    }
}

/// The job, asking for some of its outputs in any order, or naming none and getting all.
fn asking((mut job, mut outputs): (Job, Outputs), random: &mut Random) -> (Job, Outputs) {
    if random.below(3) > 0 {
        if random.below(2) == 0 {
            outputs.reverse();
        }
        outputs.truncate(1 + random.below(outputs.len()));
        job.outputs = outputs.iter().map(|(name, _)| name.clone()).collect();
    }
    (job, outputs)
}

/// Users of a graph in this process, and of the same in a child. Of each, two gather batches of different sizes, which
/// may hold jobs of both, and one runs its jobs alone.
fn users(options: &GraphOptions, name: &str, policy: BatchPolicy) -> Arc<[Graph]> {
    let of = |isolation| {
        let options = GraphOptions { isolation, queue: Some(65_536), ..options.clone() };
        let first = engines().load(onnx(name), &options).expect("a graph");
        [policy.max_rows, policy.max_rows / 4 + 2, 1].map(|max_rows| {
            let user = first.for_another(&options).expect("another user");
            user.set_batching(BatchPolicy { max_rows, ..policy });
            user.set_padding(true);
            user
        })
    };
    [Isolation::Process, Isolation::Child].into_iter().flat_map(of).collect()
}

/// Whether the engines ran less often than these users were answered.
fn ran_together(users: &[Graph]) -> bool {
    let runs: BTreeMap<usize, u64> = users.iter().map(|user| (user.sessions_id(), user.runs())).collect();
    assert_eq!(runs.len(), 2, "here and in a child");
    let (runs, jobs): (u64, u64) = (runs.values().sum(), users.iter().map(|user| user.counts().inferences).sum());
    eprintln!("{jobs} jobs in {runs} runs");
    runs < jobs
}

/// Runs them at the same time, to their ends.
fn all_of<F: Future<Output = ()> + Send + 'static>(callers: impl Iterator<Item = F>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let callers: Vec<_> = callers.map(tokio::spawn).collect();
        for caller in callers {
            caller.await.expect("every row as it should be");
        }
    });
}

/// What all callers did together.
#[derive(Default)]
struct Tally {
    checked: AtomicUsize,
    failed: AtomicUsize,
    gave_up: AtomicUsize,
}

/// One caller of the users of a graph.
struct Caller {
    net: Net,
    users: Arc<[Graph]>,
    number: usize,
    random: Random,
    tally: Arc<Tally>,
}

impl Caller {
    /// Asks any user for anything: jobs of any size at any time, close together and apart, of which some fail and some
    /// are given up.
    async fn run(self, jobs: usize) {
        let Caller { net, users, number, mut random, tally } = self;
        let tenant: Arc<str> = ["a", "b", "c"][number % 3].into();
        let share = Share { name: format!("model {}", number % 2).into(), weight: 1 + number as u32 % 2 };
        let mut next = number * STRETCH;
        for _ in 0..jobs {
            let count = if random.below(4) > 0 { 1 + random.below(12) } else { 1 + random.below(400) };
            let (kind, patience) = (random.below(100), random.below(300) as u64);
            if random.below(16) == 0 {
                tokio::time::sleep(Duration::from_micros(random.below(2_000) as u64)).await;
            }
            let poison = if kind == 0 { net.poison() } else { None };
            let is_bad = poison.is_some();
            let good = || asking(net.rows(next, count), &mut random);
            let (mut job, expected) = poison.map_or_else(good, |job| (job, vec![]));
            next += count;
            assert!(next <= (number + 1) * STRETCH, "another caller's rows begin there");
            (job.tenant, job.share) = (tenant.clone(), share.clone());
            let answer = users[random.below(users.len())].compute(job);
            let answer = match kind {
                1..8 => match tokio::time::timeout(Duration::from_micros(patience), answer).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        tally.gave_up.fetch_add(1, Relaxed);
                        continue;
                    }
                },
                _ => answer.await,
            };
            match answer {
                Ok(outputs) => {
                    assert!(!is_bad, "a row that fails was answered");
                    assert!(outputs == expected, "another caller's rows");
                    tally.checked.fetch_add(count, Relaxed);
                }
                Err(EngineError::Failed(_) | EngineError::InvalidInput(_)) => {
                    assert!(is_bad, "a neighbour's failure");
                    tally.failed.fetch_add(1, Relaxed);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn every_caller_gets_its_own_rows() {
    let mut random = Random(seed());
    for engine in backends() {
        let (mut checked, mut failed, mut gave_up) = (0, 0, 0);
        let mut loads = vec![
            (Net::Rows, 2, 512, 0),
            (Net::TwoInTwoOut, 1, 64, 0),
            (Net::TwoInTwoOut, 2, 256, 200),
            (Net::Rows, 3, 16, 0),
        ];
        if engine != EngineChoice::Rten {
            loads.push((Net::Words, 2, 64, 0));
        }
        for (net, sessions, max_rows, delay) in loads {
            let policy = BatchPolicy { max_rows, delay: Duration::from_micros(delay) };
            let options = GraphOptions { engine, sessions: Some(sessions), ..Default::default() };
            let (users, tally) = (users(&options, net.name(), policy), Arc::new(Tally::default()));
            let jobs = if net == Net::Words { 40 } else { 140 };
            all_of((0..CALLERS).map(|number| {
                let random = Random(random.below(usize::MAX) as u64 | 1);
                Caller { net, users: users.clone(), number, random, tally: tally.clone() }.run(jobs)
            }));
            eprintln!("{engine:?} {net:?} {max_rows}:");
            assert!(ran_together(&users), "nothing ran together");
            let counts: Vec<_> = users.iter().map(Graph::counts).collect();
            let failures: u64 = counts.iter().map(|counts| counts.failures).sum();
            assert!(failures >= tally.failed.load(Relaxed) as u64);
            for counts in counts {
                let by_size: u64 = counts.sizes.values().map(|size| size.executions).sum();
                assert!(by_size <= counts.executions && counts.sizes.len() <= 128);
            }
            checked += tally.checked.load(Relaxed);
            failed += tally.failed.load(Relaxed);
            gave_up += tally.gave_up.load(Relaxed);
        }
        eprintln!("{engine:?}: {checked} rows were right, {failed} jobs failed, {gave_up} callers gave up");
        assert!(checked >= 1_000_000, "only {checked} rows");
        assert!(failed > 0 && gave_up > 0, "{failed} jobs failed, {gave_up} callers gave up");
    }
}

/// Texts of different lengths for the graph `encoder`, and what each job gives alone.
fn texts(engine: EngineChoice) -> Vec<(Job, Tensor)> {
    let graph = batched(engine, "encoder", 1, BatchPolicy::OFF);
    let of = |text: usize| {
        let (count, length) = (1 + text % 3, 1 + text * 7 % 40);
        let whole = |values: Vec<i64>| Tensor::from_vec([count, length], values).expect("a tensor");
        let ids = (0..count * length).map(|at| ((at * 13 + text * 31) % 100) as i64).collect();
        let inputs = vec![("input_ids", whole(ids)), ("attention_mask", whole(vec![1; count * length]))];
        (job(inputs.clone()), run_one(&graph, inputs))
    };
    (0..96).map(of).collect()
}

/// Asks any user for any text, and gives some of them up.
async fn reader(users: Arc<[Graph]>, texts: Arc<[(Job, Tensor)]>, mut random: Random, jobs: usize) {
    for _ in 0..jobs {
        let (job, alone) = &texts[random.below(texts.len())];
        let (kind, patience) = (random.below(16), random.below(300) as u64);
        let answer = users[random.below(users.len())].compute(job.clone());
        let answer = match kind {
            0 => match tokio::time::timeout(Duration::from_micros(patience), answer).await {
                Ok(answer) => answer,
                Err(_) => continue,
            },
            _ => answer.await,
        };
        let hidden = answer.expect("an answer").remove(0).1;
        assert_eq!(hidden.shape(), alone.shape());
        let (own, alone) = (hidden.values::<f32>().expect("floats"), alone.values::<f32>().expect("floats"));
        assert!(own.iter().zip(alone.iter()).all(|(a, b)| (a - b).abs() < 1e-4), "another caller's rows");
    }
}

#[test]
fn rows_that_were_filled_up_are_their_callers_own() {
    let mut random = Random(seed());
    let padding = r#"{"inputs": {"input_ids": 7, "attention_mask": 0}, "outputs": ["hidden"], "step": 8}"#;
    for engine in backends() {
        let padding = Some(serde_json::from_str(padding).expect("a padding"));
        let options = GraphOptions { engine, sessions: Some(2), padding, ..Default::default() };
        let users = users(&options, "encoder", BatchPolicy { max_rows: 32, delay: Duration::from_micros(200) });
        assert!(users.iter().all(Graph::padded));
        let texts: Arc<[_]> = texts(engine).into();
        all_of((0..CALLERS).map(|_| {
            let random = Random(random.below(usize::MAX) as u64 | 1);
            reader(users.clone(), texts.clone(), random, 60)
        }));
        assert!(ran_together(&users), "nothing ran together");
    }
}

#[test]
fn a_bad_input_fails_alone() {
    for engine in backends() {
        // A batch of four, one of them bad; the delay is never waited for.
        let policy = BatchPolicy { max_rows: 4, delay: Duration::from_secs(3600) };
        let graph = batched(engine, "rows", 1, policy);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let good = || rows(7, 1);
            let (first, second, bad, third) = tokio::join!(
                graph.compute(good().0),
                graph.compute(good().0),
                graph.compute(poison()),
                graph.compute(good().0),
            );
            for answer in [first, second, third] {
                let values = answer.expect("an answer")[0].1.values::<f32>().expect("numbers").into_owned();
                assert_eq!(values, good().1);
            }
            assert!(bad.is_err());
        });
        let counts = graph.counts();
        assert_eq!((counts.inferences, counts.failures, counts.separated), (3, 1, 1));
        assert_eq!((counts.executions, counts.rows), (5, 3), "one together, and each alone");
        assert_eq!(counts.released[Released::Full as usize], 1);
    }
}

#[test]
fn rows_run_together_and_outputs_share_their_memory() {
    for engine in backends() {
        let policy = BatchPolicy { max_rows: 3, delay: Duration::from_secs(3600) };
        let graph = batched(engine, "rows", 1, policy);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (one, two) =
            runtime.block_on(async { tokio::join!(graph.compute(rows(0, 1).0), graph.compute(rows(1, 2).0)) });
        let (one, two) = (one.expect("an answer").remove(0).1, two.expect("an answer").remove(0).1);
        assert_eq!((one.shape(), two.shape()), (&[1, 4][..], &[2, 4][..]));
        assert_eq!(one.data().as_ptr().wrapping_add(one.data().len()), two.data().as_ptr(), "no copy");
        let counts = graph.counts();
        assert_eq!((counts.executions, counts.inferences, counts.rows), (1, 2, 3));
        assert_eq!(counts.sizes.keys().collect::<Vec<_>>(), [&3]);
    }
}

#[test]
fn each_user_of_a_graph_counts_its_own() {
    for engine in backends() {
        let policy = BatchPolicy { max_rows: 4, delay: Duration::from_secs(3600) };
        let idle = batched(engine, "rows", 1, policy);
        let [one, two] = [0; 2].map(|_| idle.for_another(&GraphOptions::default()).expect("another"));
        one.set_batching(policy);
        two.set_batching(policy);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let named =
            |name: &str, first, count| Job { share: Share { name: name.into(), weight: 1 }, ..rows(first, count).0 };
        runtime.block_on(async {
            let (a, b) = tokio::join!(one.compute(named("one", 0, 1)), two.compute(named("two", 1, 3)));
            assert!(a.is_ok() && b.is_ok());
            one.compute(named("one", 4, 4)).await.expect("a full batch of its own");
        });
        let (a, b) = (one.counts(), two.counts());
        assert_eq!([&idle, &one, &two].map(Graph::runs), [2; 3], "one run for both, and one for one of them");
        assert_eq!(idle.sessions_id(), two.sessions_id());
        assert_ne!(idle.sessions_id(), batched(engine, "rows", 1, policy).sessions_id());
        assert_eq!((a.executions, a.inferences, a.rows, a.gathered), (2, 2, 5, 1));
        assert_eq!((b.executions, b.inferences, b.rows, b.gathered), (1, 1, 3, 1));
        assert_eq!(b.sizes.keys().collect::<Vec<_>>(), [&4], "the size of the whole run");
        let (whole, quarters) = (b.sizes[&4], b.compute_ns as f64 * 4.0 / 3.0);
        assert!((quarters / whole.compute_ns as f64 - 1.0).abs() < 0.01, "its rows' part of the time: {b:?}");
        assert_eq!((a.sizes[&4].executions, a.sizes[&4].gathered), (2, 1), "alone it was not put together");
        assert!(a.queue_ns > 0 && b.gather_ns <= whole.gather_ns && whole.executions == 1);
        assert_eq!(idle.counts(), Default::default());
    }
}
