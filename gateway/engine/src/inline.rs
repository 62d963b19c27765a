//! Runs that are too short to be handed to another thread: the caller's own runs them.
//!
//! To wake a worker and to be woken by it costs several times what a tiny net takes. So where an engine can run a session
//! on any thread, short runs happen where they are asked for, as long as the graph's queue is empty. Where jobs are dense a
//! worker is awake anyway, and several jobs make one run: then only those do that cost less than to be handed over. Which
//! runs are short is not guessed: a worker, or the last such run, took at most [`SHORT`] for inputs of the very same
//! shapes, and the graph's operators are such that what a run costs follows from the shapes.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::Tensor;
use crate::backend::Session;
use crate::turnstile::Gate;

/// The longest run on a caller's thread. That thread has other requests to look after, which wait meanwhile.
const SHORT: Duration = Duration::from_micros(30);

/// What it costs to hand a job over, in processor time: to queue it, to wake the worker, and its caller after it. No batch
/// makes up for that where the whole run takes less.
const HAND_OVER: Duration = Duration::from_micros(12);

/// Jobs that come after one another by less, on average, are dense. About as long as a worker takes to wake up and its
/// caller after it.
const SPARSE: Duration = Duration::from_micros(100);

/// Operators of ONNX whose work and whose outputs' shapes follow from the shapes of their inputs, whatever these hold.
const STEADY: [&str; 63] = [
    "Abs",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Ceil",
    "Clip",
    "Concat",
    "Constant",
    "Conv",
    "Div",
    "Dropout",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Flatten",
    "Floor",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Greater",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "Log",
    "LogSoftmax",
    "MatMul",
    "Max",
    "MaxPool",
    "Min",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "Reciprocal",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "Relu",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Sqrt",
    "Sub",
    "Sum",
    "Tanh",
    "Transpose",
    "Where",
    "ai.onnx.ml:LinearClassifier",
    "ai.onnx.ml:Scaler",
    "ai.onnx.ml:TreeEnsembleClassifier",
];

/// A graph's sessions for callers' own threads.
pub(crate) struct Inline {
    /// None where the engine or the operators rule it out, and while the weights are not in memory.
    seats: RwLock<Vec<Mutex<Seat>>>,
    /// The shapes of the last run that was short, hashed; 0 for none. The lowest bit says whether it took less than
    /// [`HAND_OVER`].
    short: AtomicU64,
    /// Nobody outside can make two shapes look alike.
    hasher: RandomState,
    begin: Instant,
    /// When the last job came, nanoseconds after the beginning.
    last: AtomicU64,
    /// Nanoseconds from job to job, of late.
    gap: AtomicU64,
}

impl Default for Inline {
    fn default() -> Inline {
        let [short, last, gap] = [const { AtomicU64::new(0) }; 3];
        Inline { seats: RwLock::default(), short, hasher: RandomState::new(), begin: Instant::now(), last, gap }
    }
}

/// A session and its way to the machine's cores.
pub(crate) struct Seat {
    pub session: Box<dyn Session>,
    pub gate: Option<Gate>,
}

/// Whether what a run costs follows from the shapes of its inputs.
pub(crate) fn is_steady(operators: &BTreeSet<String>) -> bool {
    operators.iter().all(|name| STEADY.contains(&name.as_str()))
}

impl Inline {
    /// Sessions that callers may use from now on.
    pub fn set(&self, seats: Vec<Seat>) {
        *self.seats.write().unwrap_or_else(PoisonError::into_inner) = seats.into_iter().map(Mutex::new).collect();
    }

    /// A job came: whether they are sparse.
    pub fn is_sparse(&self, now: Instant) -> bool {
        let sparse = SPARSE.as_nanos() as u64;
        let now = u64::try_from(now.saturating_duration_since(self.begin).as_nanos()).unwrap_or(u64::MAX);
        // One long pause is not to hide what comes after it.
        let passed = now.saturating_sub(self.last.swap(now, Relaxed)).min(16 * sparse);
        let old = self.gap.load(Relaxed);
        let gap = old - old / 8 + passed / 8;
        self.gap.store(gap, Relaxed);
        gap > sparse
    }

    /// Learns how long a run took.
    pub fn observe(&self, inputs: &[Tensor], time: Duration) {
        let shapes = self.shapes(inputs);
        if time <= SHORT {
            self.short.store(shapes | u64::from(time <= HAND_OVER), Relaxed);
        } else if self.short.load(Relaxed) & !1 == shapes {
            self.short.store(0, Relaxed);
        }
    }

    /// Lets `run` have a session if the run will be short, and shorter than handing it over where jobs are not `sparse`,
    /// `free` says that nothing is before it, and a session and a core are free. `run` gets what
    /// `free` said, and says how long it took. `None` where the job is to be queued.
    pub fn run<F, R>(
        &self,
        inputs: &[Tensor],
        sparse: bool,
        free: impl FnOnce() -> Option<F>,
        run: impl FnOnce(&mut dyn Session, F) -> (R, Duration),
    ) -> Option<R> {
        let short = self.short.load(Relaxed);
        let is_short = if sparse { short != 0 } else { short & 1 == 1 };
        if !is_short || short & !1 != self.shapes(inputs) {
            return None;
        }
        let seats = self.seats.try_read().ok()?;
        let mut seat = seats.iter().find_map(|seat| seat.try_lock().ok())?;
        let Seat { session, gate } = &mut *seat;
        let free = free()?;
        if gate.as_mut().is_some_and(|gate| !gate.try_pass()) {
            return None;
        }
        let (result, time) = run(&mut **session, free);
        // Nobody is charged: it passed nobody who waited, and whoever comes to wait does so for microseconds.
        if let Some(gate) = gate {
            gate.leave();
        }
        drop(seat);
        self.observe(inputs, time);
        Some(result)
    }

    fn shapes(&self, inputs: &[Tensor]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        inputs.iter().for_each(|input| input.shape().hash(&mut hasher));
        hasher.finish().max(2) & !1
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread::{self, ThreadId};

    use super::*;
    use crate::backend::{Loaded, Work};
    use crate::graph::Setup;
    use crate::onnx::Model;
    use crate::queue::{Answer, Bounds};
    use crate::{BatchPolicy, DataType, Dim, Graph, GraphInfo, GraphSpec, Isolation, Job, TensorSpec};

    /// Says on which thread it ran, and takes as long as it is told to.
    #[derive(Clone, Default)]
    struct Anywhere {
        ran: Arc<Mutex<Vec<ThreadId>>>,
        nap_ms: Arc<AtomicUsize>,
    }

    impl Anywhere {
        fn last(&self) -> ThreadId {
            *self.ran.lock().expect("threads").last().expect("a run")
        }
    }

    impl Session for Anywhere {
        fn run(&mut self, inputs: &[Tensor], _: &[usize]) -> Answer {
            self.ran.lock().expect("threads").push(thread::current().id());
            match self.nap_ms.load(Relaxed) {
                0 => {}
                nap => thread::sleep(Duration::from_millis(nap as u64)),
            }
            Ok(inputs.to_vec())
        }

        fn serve(&mut self, work: &mut Work<'_>) {
            work(self);
        }

        fn beside(&self) -> Option<Box<dyn Session>> {
            Some(Box::new(self.clone()))
        }
    }

    fn graph(operator: &str) -> (Graph, Anywhere) {
        let info = GraphInfo {
            engine: "anywhere".into(),
            version: "0".into(),
            provider: "CPU".into(),
            nodes: Default::default(),
            sessions: 1,
            threads: 1,
            isolation: Isolation::Process,
        };
        let tensor = |name: &str| TensorSpec {
            name: name.into(),
            datatype: DataType::Uint8,
            shape: Some(vec![Dim::Symbol("N".into())]),
        };
        let model = Model {
            spec: GraphSpec { inputs: vec![tensor("x")], outputs: vec![tensor("y")] },
            nodes: 1,
            operators: [operator.to_owned()].into(),
            elements: Default::default(),
            on_bytes: Default::default(),
            weight_bytes: 0,
            beyond_32_bits: None,
            half: None,
            may_trap: None,
        };
        let session = Anywhere::default();
        let loaded = Loaded { info, sessions: vec![Box::new(session.clone())] };
        let bounds = Bounds { jobs: 8, wait: None, workers: 1 };
        let setup = Setup { bounds, keeps_sample: false, cores: None, padding: None, residence: None };
        (Graph::start(loaded, &model, setup).expect("a graph"), session)
    }

    /// Runs a job of so many elements on this thread; whether its run was here, too.
    fn here(graph: &Graph, session: &Anywhere, elements: usize) -> bool {
        let x = Tensor::from_vec([elements], vec![7u8; elements]).expect("bytes");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let job = Job { inputs: vec![("x".into(), x.clone())], ..Job::default() };
        // Sparse.
        thread::sleep(Duration::from_millis(2));
        assert_eq!(runtime.block_on(graph.compute(job)).expect("an answer"), [("y".to_owned(), x)]);
        session.last() == thread::current().id()
    }

    /// Until a worker's run happened to be short: a busy machine may interrupt any.
    fn learn(graph: &Graph, session: &Anywhere, elements: usize) {
        for _ in 0..10_000 {
            if here(graph, session, elements) {
                return;
            }
        }
        panic!("no run was short");
    }

    #[test]
    fn what_was_short_runs_here_and_other_shapes_do_not() {
        let (graph, session) = graph("Relu");
        assert!(!here(&graph, &session, 3), "nothing is known of it yet");
        learn(&graph, &session, 3);
        assert!(!here(&graph, &session, 4));
        let counts = graph.counts();
        assert_eq!(
            (counts.executions, counts.inferences),
            (session.ran.lock().unwrap().len() as u64, counts.executions)
        );
    }

    #[test]
    fn dense_jobs_are_told_from_sparse_ones() {
        let inline = Inline::default();
        let mut now = inline.begin;
        let mut come = |times: u32, gap: u64| {
            (0..times)
                .map(|_| {
                    now += Duration::from_micros(gap);
                    inline.is_sparse(now)
                })
                .last()
        };
        assert_eq!(come(20, 150), Some(true));
        assert_eq!(come(30, 40), Some(false));
        assert_eq!(come(1, 60_000_000), Some(true));
        assert_eq!(come(30, 40), Some(false), "soon after a pause");
        assert_eq!(come(30, 200), Some(true));
    }

    #[test]
    fn a_run_that_was_not_short_is_the_last_one_here() {
        let (graph, session) = graph("Relu");
        learn(&graph, &session, 3);
        session.nap_ms.store(2, Relaxed);
        // At most this one.
        here(&graph, &session, 3);
        assert!(!here(&graph, &session, 3));
    }

    #[test]
    fn nothing_runs_here_where_values_decide_what_it_costs() {
        let (graph, session) = graph("Loop");
        assert!((0..30).all(|_| !here(&graph, &session, 3)));
    }

    #[test]
    fn nothing_runs_here_that_is_to_wait_for_others() {
        let (graph, session) = graph("Relu");
        assert_eq!(graph.declared_axis(), Ok(()));
        learn(&graph, &session, 3);
        graph.set_batching(BatchPolicy { max_rows: 8, delay: Duration::from_micros(10) });
        assert!((0..30).all(|_| !here(&graph, &session, 3)));
    }
}
