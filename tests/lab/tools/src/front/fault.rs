//! The faults, and what each does to an answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Response, StatusCode};
use memchr::memmem;

use super::{Body, BoxError};

/// What the front does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Answers are late by this.
    Late(Duration),
    /// One of so many answers is a 500.
    Errors(u64),
    /// Connections are accepted, and nothing is answered any more.
    Mute,
    /// Answers end in the middle.
    Cut,
    /// Answers have other numbers than they should.
    Wrong,
}

/// How long the first half of a cut answer has to leave.
const FLUSH: Duration = Duration::from_millis(5);

/// Answers so far, so that the failing ones are evenly spread.
static ANSWERS: AtomicU64 = AtomicU64::new(0);

impl Fault {
    /// Reads `none`, `late MILLISECONDS`, `errors ONE_IN`, `mute`, `cut` or `wrong`.
    ///
    /// # Errors
    /// When it is none of these.
    pub fn parse(line: &str) -> Result<Fault> {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        let mut number = || words.next().and_then(|word| word.parse().ok()).context("a number is missing");
        Ok(match name {
            "none" => Fault::None,
            "late" => Fault::Late(Duration::from_millis(number()?)),
            "errors" => Fault::Errors(number()?.max(1)),
            "mute" => Fault::Mute,
            "cut" => Fault::Cut,
            "wrong" => Fault::Wrong,
            other => bail!("no fault `{other}`"),
        })
    }

    /// Makes of a good answer what the fault makes of it.
    ///
    /// # Errors
    /// When the answer could not be read.
    pub async fn apply(self, answer: Response<Incoming>) -> Result<Response<Body>, BoxError> {
        match self {
            Fault::None | Fault::Mute => {}
            Fault::Late(time) => tokio::time::sleep(time).await,
            Fault::Errors(one_in) => {
                if ANSWERS.fetch_add(1, Ordering::Relaxed).is_multiple_of(one_in) {
                    let mut failed = Response::new(whole(Bytes::from_static(b"{\"error\":\"sick\"}")));
                    *failed.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                    return Ok(failed);
                }
            }
            Fault::Cut | Fault::Wrong => {
                let (head, body) = answer.into_parts();
                let body = body.collect().await?.to_bytes();
                let body = if self == Fault::Cut { cut(body) } else { whole(falsified(body)) };
                return Ok(Response::from_parts(head, body));
            }
        }
        Ok(answer.map(|body| body.map_err(BoxError::from).boxed_unsync()))
    }
}

fn whole(body: Bytes) -> Body {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

/// The first half, and then an error, which closes the connection or resets the stream.
fn cut(mut body: Bytes) -> Body {
    body.truncate(body.len() / 2);
    let half = stream::iter([Ok(Frame::data(body))]);
    let end = stream::once(async {
        // An error that comes at once would take the first half with it.
        tokio::time::sleep(FLUSH).await;
        Err("cut in the middle".into())
    });
    StreamBody::new(half.chain(end)).boxed_unsync()
}

/// The same bytes with another first digit in every tensor of JSON, or another last byte where there is no JSON.
fn falsified(body: Bytes) -> Bytes {
    let mut bytes = body.to_vec();
    let digits: Vec<usize> = memmem::find_iter(&body, b"\"data\":[").map(|at| at + 8).collect();
    for &at in &digits {
        if let Some(digit) = bytes.get_mut(at).filter(|byte| byte.is_ascii_digit()) {
            *digit = b'0' + (*digit - b'0' + 1) % 10;
        }
    }
    if digits.is_empty()
        && !body.starts_with(b"{")
        && let Some(last) = bytes.last_mut()
    {
        *last ^= 1;
    }
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read() {
        assert_eq!(Fault::parse("late 500").unwrap(), Fault::Late(Duration::from_millis(500)));
        assert_eq!(Fault::parse("errors 2").unwrap(), Fault::Errors(2));
        assert_eq!(Fault::parse("none").unwrap(), Fault::None);
        for nonsense in ["", "late", "late soon", "sulk"] {
            assert!(Fault::parse(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_falsified_answer_has_the_same_length_and_other_numbers() {
        let text = br#"{"outputs":[{"data":[9.5,3.0]},{"data":[1]}]}"#;
        let expected = br#"{"outputs":[{"data":[0.5,3.0]},{"data":[2]}]}"#;
        assert_eq!(falsified(Bytes::from_static(text)), &expected[..]);
        assert_eq!(falsified(Bytes::from_static(b"{}")), &b"{}"[..]);
        assert_eq!(falsified(Bytes::from_static(&[1, 2, 4])), &[1, 2, 5][..]);
    }

    #[tokio::test]
    async fn a_cut_answer_is_half_of_it() {
        let mut body = cut(Bytes::from_static(b"0123456789"));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), &b"01234"[..]);
        assert!(body.frame().await.unwrap().is_err());
    }
}
