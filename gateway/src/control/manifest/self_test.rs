//! The golden request of a model.

use http::Method;
use http::uri::PathAndQuery;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Invalid, check_digest};

/// The longest method, bytes.
const MAX_METHOD: usize = 32;
/// The longest path with its query, bytes.
const MAX_PATH: usize = 4096;

/// A golden request and, where it is known, its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SelfTest {
    /// sha256 of a JSON request of the Open Inference Protocol, hex, in which FP16 and BF16 are numbers, too; of the
    /// body for a component or a command.
    pub input: String,
    /// sha256 of the JSON answer, of which `outputs` is compared; of the whole answer of a component or a command.
    /// Without one, any answer passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The largest relative difference of a floating number, against the larger magnitude or 1; all else must be equal.
    #[serde(default = "default_tolerance")]
    pub tolerance: f64,
    /// Method of the request to an http component; `POST` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Path and query of the request to an http component, below the model's own; `/` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

impl SelfTest {
    /// Whether one of its files has this digest.
    pub fn names(&self, digest: &str) -> bool {
        self.input == digest || self.output.as_deref() == Some(digest)
    }

    pub(super) fn check(&self) -> Result<(), Invalid> {
        check_digest("test.input", &self.input)?;
        if let Some(output) = &self.output {
            check_digest("test.output", output)?;
        }
        if !self.tolerance.is_finite() || self.tolerance < 0.0 {
            return Err(Invalid::new("test.tolerance", "must be a number that is not negative"));
        }
        if self.method.as_deref().is_some_and(|method| !is_method(method)) {
            let message = format!("must be a method such as GET, of at most {MAX_METHOD} capital letters");
            return Err(Invalid::new("test.method", message));
        }
        if self.path.as_deref().is_some_and(|path| !is_path(path)) {
            let message = format!("must be a path such as `/classify?x=1`, of at most {MAX_PATH} bytes");
            return Err(Invalid::new("test.path", message));
        }
        Ok(())
    }
}

fn default_tolerance() -> f64 {
    1e-4
}

/// CONNECT is none: it goes to no path.
fn is_method(text: &str) -> bool {
    let is_word = (1..=MAX_METHOD).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_uppercase());
    is_word && text != Method::CONNECT.as_str()
}

/// All of it, as a request can carry it: a fragment would be cut off.
fn is_path(text: &str) -> bool {
    let is_whole = || text.parse::<PathAndQuery>().is_ok_and(|parsed| parsed.as_str() == text);
    text.len() <= MAX_PATH && text.starts_with('/') && is_whole()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_and_paths_are_what_a_request_can_carry() {
        for good in ["GET", "POST", "PROPFIND"] {
            assert!(is_method(good), "{good}");
        }
        for bad in ["", "get", "G T", "GET\r\n", "CONNECT", "X-Y", &"A".repeat(MAX_METHOD + 1)] {
            assert!(!is_method(bad), "{bad:?}");
        }
        for good in ["/", "/classify?a=1&b=%20", "//"] {
            assert!(is_path(good), "{good}");
        }
        for bad in ["", "classify", "http://a/", "/a b", "/a#b", "/a\r\nb", &format!("/{}", "a".repeat(MAX_PATH))] {
            assert!(!is_path(bad), "{bad:?}");
        }
    }
}
