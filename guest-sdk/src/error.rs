//! Why there is no answer.

use std::fmt;

/// What the functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, by whose fault it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    caller: bool,
    message: String,
}

impl Error {
    /// The caller sent something that cannot be answered; the caller gets to read the message.
    pub fn invalid_input(message: impl Into<String>) -> Error {
        Error { caller: true, message: message.into() }
    }

    /// The module, its graph or its assets are at fault; the message goes to the log and never to the caller.
    pub fn internal(message: impl Into<String>) -> Error {
        Error { caller: false, message: message.into() }
    }

    /// A function for `map_err` that makes an internal error of any error, with what it was about.
    ///
    /// ```
    /// use windrose_guest::Error;
    /// let error: Error = std::fs::read("/no/such/file").map_err(Error::wrap("labels")).unwrap_err();
    /// assert!(error.message().starts_with("labels: "));
    /// ```
    pub fn wrap<E: fmt::Display>(what: &str) -> impl FnOnce(E) -> Error {
        move |error| Error::internal(format!("{what}: {error}"))
    }

    /// Whether the caller is at fault.
    pub fn is_invalid_input(&self) -> bool {
        self.caller
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
