//! Whose fault a failed call or a refused module is.

use windrose_engine::EngineError;

/// A limit of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Linear memory and tables of the instance.
    Memory,
    /// Tensor bytes that the host holds for the call.
    TensorMemory,
    /// CPU time of the guest.
    CpuTime,
    /// Wall time of the call.
    WallTime,
    /// Size of the answer.
    Output,
    /// Bytes that the guest logs.
    Log,
    /// Call depth of the guest.
    Stack,
}

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum CallError {
    /// The module says that the caller passed something wrong. The message is for the caller.
    #[error("{0}")]
    InvalidInput(String),
    /// The module gave up. The message is for the log.
    #[error("the module failed: {0}")]
    Failed(String),
    /// The module trapped or panicked. The message is for the log.
    #[error("the module trapped: {0}")]
    Trapped(String),
    /// The module broke the contract: an undeclared output, a wrong type, a missing answer.
    #[error("the module broke its contract: {0}")]
    Contract(String),
    /// A limit of the model stopped the call.
    #[error("the model reached its limit of {0:?}")]
    Limit(Limit),
    /// The request's own deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// An engine refused or failed and the module let that through.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No instance could be had: the pool is exhausted.
    #[error("no free instance")]
    Busy,
    /// The module's code had left memory and did not come back from the cache. The message is for the log.
    #[error("the module's code cannot be loaded: {0}")]
    NotLoaded(String),
    /// Ours.
    #[error("sandbox error: {0}")]
    Host(String),
}

/// Why a module cannot be deployed. Messages are for the person who deploys.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum ModuleError {
    /// Not WebAssembly, or not valid.
    #[error("not a valid WebAssembly component: {0}")]
    Invalid(String),
    /// A core module; says which ABI it speaks where that is known.
    #[error("a core module, not a component: {0}")]
    CoreModule(String),
    /// It imports what no grant can give.
    #[error("imports what this gateway does not know: {0}")]
    UnknownImport(String),
    /// It exports none of the worlds that can be served.
    #[error("{0}")]
    NoWorld(String),
    /// Its initialiser failed, or left behind what no other instance can start from.
    #[error("initialiser: {0}")]
    Initialiser(String),
    /// Its instances cannot answer more than one request; says why not.
    #[error("limits.reuse must be 1 here: {0}")]
    Reuse(&'static str),
    /// Ours: the cache folder, the compiler.
    #[error("sandbox error: {0}")]
    Host(String),
}
