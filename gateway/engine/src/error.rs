//! What can go wrong in an engine, and whose fault it is.

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller passed something that the graph does not take.
    Caller,
    /// The graph itself: it does not load, or fails while it runs.
    Graph,
    /// The graph ran longer than any may.
    Time,
    /// The graph ended the process that ran it.
    Crash,
    /// Too much work for now; the same call may succeed later.
    Overload,
    /// The call's deadline passed before it finished.
    Deadline,
    /// The graph's process is being started; the same call may succeed later.
    Unready,
    /// The engine or this program.
    Host,
}

/// Why a graph did not load or a job did not run. Messages name the input, the type or the operator, and never
/// contain a path of this machine.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum EngineError {
    /// A wrong name, count, type, shape or value of an input or requested output.
    #[error("{0}")]
    InvalidInput(String),
    /// The graph cannot be served: unreadable, refused by the bounded reader, or refused by the engine.
    #[error("{0}")]
    InvalidGraph(String),
    /// The graph needs something that this engine lacks; says which engine has it.
    #[error("{0}")]
    Unsupported(String),
    /// The engine, device or provider that was asked for is not there.
    #[error("{0}")]
    Unavailable(String),
    /// The engine failed while it ran the graph.
    #[error("{0}")]
    Failed(String),
    /// A run took longer than the engine may, and its process was ended.
    #[error("the run took longer than a run may")]
    TimeLimit,
    /// The process that ran the graph ended; says how.
    #[error("the graph's process {0}")]
    Crashed(String),
    /// There is no process for the graph at the moment.
    #[error("{0}")]
    NotReady(String),
    /// The graph's queue is full.
    #[error("the queue of this graph is full")]
    QueueFull,
    /// More waits than the job's deadline, or the queue's own bound, leaves time for.
    #[error("{millis} ms of work wait for this graph, which is more than may")]
    QueueLong {
        /// How long it would have waited, milliseconds.
        millis: u64,
    },
    /// The job's deadline passed before it ran or finished.
    #[error("the deadline passed before the graph ran")]
    Deadline,
    /// The workers are gone: the process is shutting down, or a worker died.
    #[error("the engine is not running")]
    Stopped,
}

impl EngineError {
    /// Whose fault this is.
    pub fn fault(&self) -> Fault {
        match self {
            EngineError::InvalidInput(_) => Fault::Caller,
            EngineError::InvalidGraph(_) | EngineError::Unsupported(_) | EngineError::Failed(_) => Fault::Graph,
            EngineError::TimeLimit => Fault::Time,
            EngineError::Crashed(_) => Fault::Crash,
            EngineError::NotReady(_) => Fault::Unready,
            EngineError::QueueFull | EngineError::QueueLong { .. } => Fault::Overload,
            EngineError::Deadline => Fault::Deadline,
            EngineError::Unavailable(_) | EngineError::Stopped => Fault::Host,
        }
    }
}
