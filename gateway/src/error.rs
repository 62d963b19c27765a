//! Whose fault a failed request is, whether it may be retried, and the only place that knows status codes.

use std::time::Duration;

use http::StatusCode;
use windrose_engine::{EngineError, Fault};
use windrose_sandbox::{CallError, Limit};

use crate::http::oip::CodecError;

/// Where an error came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The caller.
    Caller,
    /// The model: its module or its graph.
    Guest,
    /// Another site.
    Peer,
    /// This gateway.
    Ours,
}

/// What kind of error it is. `as_str` is the stable word in metrics and in the `windrose-error` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Malformed,
    InvalidInput,
    NotFound,
    NotReady,
    MethodNotAllowed,
    TooLarge,
    UriTooLong,
    HeadersTooLarge,
    UnsupportedMedia,
    Unauthorized,
    Forbidden,
    Overloaded,
    Deadline,
    GuestFailed,
    GuestTrapped,
    GuestContract,
    MemoryLimit,
    TensorMemoryLimit,
    CpuLimit,
    WallLimit,
    OutputLimit,
    LogLimit,
    StackLimit,
    GraphFailed,
    GraphCrashed,
    GraphTimeLimit,
    Conflict,
    Unlawful,
    NotHere,
    Unavailable,
    Internal,
}

/// Why a request has no answer: one message for the client, another for the log.
#[derive(Clone, Debug)]
pub struct Error {
    /// What kind.
    pub kind: Kind,
    /// For the client. Never shows what is ours.
    pub message: String,
    /// For the log, where there is more to say.
    pub detail: Option<String>,
    /// After how long the same request may succeed, where somebody said so.
    retry_after: Option<Duration>,
}

impl Error {
    /// An error whose message is for the client.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), detail: None, retry_after: None }
    }

    /// Bodies hold all the memory that they may.
    pub fn no_memory() -> Error {
        Error::new(Kind::Overloaded, "the memory for bodies of requests and answers is full")
    }

    /// A head that is no request, by the status that hyper has for it.
    pub fn unreadable(status: Option<StatusCode>) -> Error {
        match status {
            Some(StatusCode::URI_TOO_LONG) => Error::new(Kind::UriTooLong, "the request's target is too long"),
            Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE) => {
                Error::new(Kind::HeadersTooLarge, "the request's headers are too many or too long")
            }
            _ => Error::new(Kind::Malformed, "the head of the request is not valid HTTP/1.1"),
        }
    }

    /// Adds after how long the same request may succeed.
    pub fn retry_in(mut self, after: Option<Duration>) -> Error {
        self.retry_after = after;
        self
    }

    /// Seconds after which the same request may succeed, where waiting helps: what is known, and at least one.
    pub fn retry_after(&self) -> Option<u64> {
        let helps = matches!(self.kind, Kind::Overloaded | Kind::NotReady);
        let known = self.retry_after.unwrap_or_default();
        helps.then(|| known.as_secs().saturating_add(u64::from(known.subsec_nanos() > 0)).max(1))
    }

    /// Adds what only the log shows.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Error {
        self.detail = Some(detail.into());
        self
    }
}

impl Kind {
    /// Every kind, in the order of declaration.
    pub const ALL: [Kind; 31] = [
        Kind::Malformed,
        Kind::InvalidInput,
        Kind::NotFound,
        Kind::NotReady,
        Kind::MethodNotAllowed,
        Kind::TooLarge,
        Kind::UriTooLong,
        Kind::HeadersTooLarge,
        Kind::UnsupportedMedia,
        Kind::Unauthorized,
        Kind::Forbidden,
        Kind::Overloaded,
        Kind::Deadline,
        Kind::GuestFailed,
        Kind::GuestTrapped,
        Kind::GuestContract,
        Kind::MemoryLimit,
        Kind::TensorMemoryLimit,
        Kind::CpuLimit,
        Kind::WallLimit,
        Kind::OutputLimit,
        Kind::LogLimit,
        Kind::StackLimit,
        Kind::GraphFailed,
        Kind::GraphCrashed,
        Kind::GraphTimeLimit,
        Kind::Conflict,
        Kind::Unlawful,
        Kind::NotHere,
        Kind::Unavailable,
        Kind::Internal,
    ];

    /// The status that clients see.
    pub fn status(self) -> StatusCode {
        match self {
            Kind::Malformed | Kind::InvalidInput => StatusCode::BAD_REQUEST,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::UriTooLong => StatusCode::URI_TOO_LONG,
            Kind::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Kind::UnsupportedMedia => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Kind::Unauthorized => StatusCode::UNAUTHORIZED,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Kind::NotReady | Kind::Unlawful | Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::NotHere => StatusCode::MISDIRECTED_REQUEST,
            Kind::Deadline | Kind::WallLimit | Kind::CpuLimit | Kind::GraphTimeLimit => StatusCode::GATEWAY_TIMEOUT,
            Kind::GuestFailed | Kind::GuestTrapped | Kind::GuestContract => StatusCode::BAD_GATEWAY,
            Kind::GraphFailed | Kind::GraphCrashed => StatusCode::BAD_GATEWAY,
            Kind::MemoryLimit | Kind::TensorMemoryLimit | Kind::OutputLimit | Kind::LogLimit | Kind::StackLimit => {
                StatusCode::BAD_GATEWAY
            }
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whose fault.
    pub fn origin(self) -> Origin {
        match self {
            Kind::Malformed
            | Kind::InvalidInput
            | Kind::NotFound
            | Kind::MethodNotAllowed
            | Kind::TooLarge
            | Kind::UriTooLong
            | Kind::HeadersTooLarge
            | Kind::UnsupportedMedia
            | Kind::Unauthorized
            | Kind::Forbidden
            | Kind::Conflict
            | Kind::Unlawful
            | Kind::Deadline => Origin::Caller,
            Kind::NotHere | Kind::Unavailable => Origin::Peer,
            Kind::Internal | Kind::Overloaded | Kind::NotReady => Origin::Ours,
            _ => Origin::Guest,
        }
    }

    /// Whether the module did it, and would do it again wherever it runs. What took too long, and what an engine or its
    /// process did, may end otherwise at another site.
    pub fn is_modules(self) -> bool {
        matches!(
            self,
            Kind::GuestFailed
                | Kind::GuestTrapped
                | Kind::GuestContract
                | Kind::MemoryLimit
                | Kind::TensorMemoryLimit
                | Kind::CpuLimit
                | Kind::OutputLimit
                | Kind::LogLimit
                | Kind::StackLimit
        )
    }

    /// The stable word for metrics and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Malformed => "malformed",
            Kind::InvalidInput => "invalid_input",
            Kind::NotFound => "not_found",
            Kind::NotReady => "not_ready",
            Kind::MethodNotAllowed => "method_not_allowed",
            Kind::TooLarge => "too_large",
            Kind::UriTooLong => "uri_too_long",
            Kind::HeadersTooLarge => "headers_too_large",
            Kind::UnsupportedMedia => "unsupported_media",
            Kind::Unauthorized => "unauthorized",
            Kind::Forbidden => "forbidden",
            Kind::Overloaded => "overloaded",
            Kind::Deadline => "deadline",
            Kind::GuestFailed => "guest_failed",
            Kind::GuestTrapped => "guest_trapped",
            Kind::GuestContract => "guest_contract",
            Kind::MemoryLimit => "memory_limit",
            Kind::TensorMemoryLimit => "tensor_memory_limit",
            Kind::CpuLimit => "cpu_limit",
            Kind::WallLimit => "wall_limit",
            Kind::OutputLimit => "output_limit",
            Kind::LogLimit => "log_limit",
            Kind::StackLimit => "stack_limit",
            Kind::GraphFailed => "graph_failed",
            Kind::GraphCrashed => "graph_crashed",
            Kind::GraphTimeLimit => "graph_time_limit",
            Kind::Conflict => "conflict",
            Kind::Unlawful => "unlawful",
            Kind::NotHere => "not_here",
            Kind::Unavailable => "unavailable",
            Kind::Internal => "internal",
        }
    }
}

impl From<CodecError> for Error {
    fn from(error: CodecError) -> Error {
        match error {
            CodecError::Malformed(message) => Error::new(Kind::Malformed, message),
            CodecError::Invalid(message) => Error::new(Kind::InvalidInput, message),
            CodecError::NoMemory => Error::no_memory(),
        }
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Error {
        match error {
            CallError::InvalidInput(message) => Error::new(Kind::InvalidInput, message),
            CallError::Failed(detail) => Error::new(Kind::GuestFailed, "the module failed").with_detail(detail),
            CallError::Trapped(detail) => Error::new(Kind::GuestTrapped, "the module trapped").with_detail(detail),
            CallError::Contract(detail) => {
                Error::new(Kind::GuestContract, "the module broke its contract").with_detail(detail)
            }
            CallError::Limit(limit) => from_limit(limit),
            CallError::Deadline => Error::new(Kind::Deadline, "the deadline passed"),
            CallError::Engine(error) => error.into(),
            CallError::Busy => Error::new(Kind::Overloaded, "no free instance"),
            CallError::NotLoaded(detail) => Error::new(Kind::NotReady, "the module is not loaded").with_detail(detail),
            CallError::Host(detail) => Error::new(Kind::Internal, "internal error").with_detail(detail),
        }
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Error {
        let detail = error.to_string();
        match error.fault() {
            Fault::Caller => Error::new(Kind::InvalidInput, detail),
            Fault::Graph => Error::new(Kind::GraphFailed, "the graph failed").with_detail(detail),
            Fault::Time => Error::new(Kind::GraphTimeLimit, "the graph ran longer than it may"),
            Fault::Crash => Error::new(Kind::GraphCrashed, "the graph ended its process").with_detail(detail),
            Fault::Unready => Error::new(Kind::NotReady, "the graph is not loaded at the moment").with_detail(detail),
            Fault::Overload => Error::new(Kind::Overloaded, detail),
            Fault::Deadline => Error::new(Kind::Deadline, "the deadline passed"),
            Fault::Host => Error::new(Kind::Internal, "internal error").with_detail(detail),
        }
    }
}

fn from_limit(limit: Limit) -> Error {
    let (kind, what) = match limit {
        Limit::Memory => (Kind::MemoryLimit, "memory"),
        Limit::TensorMemory => (Kind::TensorMemoryLimit, "tensor memory"),
        Limit::CpuTime => (Kind::CpuLimit, "CPU time"),
        Limit::WallTime => (Kind::WallLimit, "wall time"),
        Limit::Output => (Kind::OutputLimit, "answer size"),
        Limit::Log => (Kind::LogLimit, "log volume"),
        Limit::Stack => (Kind::StackLimit, "call depth"),
    };
    Error::new(kind, format!("the model reached its limit of {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_complete_and_told_apart() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
            assert!(kind.status().is_client_error() || kind.status().is_server_error());
            assert_eq!(Kind::ALL.iter().filter(|k| k.as_str() == kind.as_str()).count(), 1);
            assert!(!kind.is_modules() || kind.origin() == Origin::Guest);
        }
    }

    #[test]
    fn a_client_is_told_whole_seconds_and_at_least_one() {
        let after =
            |kind, millis: Option<u64>| Error::new(kind, "").retry_in(millis.map(Duration::from_millis)).retry_after();
        for (millis, seconds) in
            [(None, 1), (Some(0), 1), (Some(300), 1), (Some(1000), 1), (Some(1001), 2), (Some(7000), 7)]
        {
            assert_eq!(after(Kind::Overloaded, millis), Some(seconds));
        }
        assert_eq!(after(Kind::NotReady, None), Some(1));
        assert_eq!(after(Kind::Internal, Some(5)), None);
    }

    #[test]
    fn what_is_ours_never_reaches_the_client() {
        let secrets = [
            CallError::Host("secret".to_owned()),
            CallError::NotLoaded("secret".to_owned()),
            CallError::Failed("secret".to_owned()),
            CallError::Trapped("secret".to_owned()),
            CallError::Contract("secret".to_owned()),
            CallError::Engine(EngineError::Failed("secret".to_owned())),
            CallError::Engine(EngineError::Unavailable("secret".to_owned())),
            CallError::Engine(EngineError::Crashed("secret".to_owned())),
            CallError::Engine(EngineError::NotReady("secret".to_owned())),
        ];
        for error in secrets {
            let error = Error::from(error);
            assert!(!error.message.contains("secret"), "{error:?}");
            assert!(error.detail.is_some_and(|d| d.contains("secret")));
        }
    }
}
