//! The load generator: requests leave on a fixed schedule, whatever became of those before, and every outcome is written.
//!
//! A latency counts from the moment at which the schedule wanted the request to leave, so that a server that stalls
//! cannot hide the requests that it kept from being sent.

mod pool;
mod question;
mod record;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt;
use hyper::header::{HeaderName, HeaderValue};

use self::pool::{Failed, Pool};
use self::question::{Question, Request};
use self::record::{Outcome, Record};
use crate::due;

/// What an answer says of its error, and of the attempts that there were.
const ERROR: HeaderName = HeaderName::from_static("windrose-error");
const ATTEMPTS: HeaderName = HeaderName::from_static("windrose-attempts");

/// Bytes of an error's body that are kept.
const NOTE: usize = 300;

/// How the load generator is started.
#[derive(clap::Args)]
pub struct Arguments {
    /// Host and port; the host is resolved again for every new connection, and all of its addresses are used.
    #[arg(long)]
    target: String,
    /// Path of the requests.
    #[arg(long, default_value = "/v2/models/add/infer")]
    path: String,
    /// Requests a second.
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// How long to send.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// How long a client waits for an answer.
    #[arg(long, default_value_t = 10_000)]
    patience_ms: u64,
    /// Connections that are opened before the first request.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Connections at most.
    #[arg(long, default_value_t = 2_048)]
    max_connections: usize,
    /// Further headers, `name: value`.
    #[arg(long = "header")]
    headers: Vec<String>,
    /// Bytes that each request's body is filled up to.
    #[arg(long, default_value_t = 0)]
    body_bytes: usize,
    /// The header of an answer that names the site.
    #[arg(long, default_value = "windrose-site")]
    site_header: HeaderName,
    /// Where the outcomes go.
    #[arg(long)]
    out: PathBuf,
}

/// Sends the load, waits for the last answer and writes the record.
///
/// # Errors
/// When the record cannot be written; what becomes of a request is no error.
pub fn run(arguments: Arguments) -> Result<()> {
    ensure!(arguments.rate > 0.0 && arguments.seconds > 0.0, "rate and seconds must be above 0");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, send(arguments))
}

/// What all requests share.
struct Sender {
    pool: Rc<Pool>,
    question: Question,
    patience: Duration,
    site_header: HeaderName,
    start: Instant,
}

async fn send(arguments: Arguments) -> Result<()> {
    let headers = arguments.headers.iter().map(|h| header(h)).collect::<Result<Vec<_>>>()?;
    let pool = Rc::new(Pool::new(arguments.target.clone(), arguments.max_connections));
    pool.open(arguments.connections).await;
    let schedule = Schedule {
        start: Instant::now() + Duration::from_millis(10),
        interval: Duration::from_secs_f64(1.0 / arguments.rate),
        requests: (arguments.rate * arguments.seconds).round() as u32,
    };
    let record = Rc::new(Record::create(&arguments.out, schedule.start)?);
    let sender = Rc::new(Sender {
        pool,
        question: Question::new(&arguments.target, &arguments.path, headers, arguments.body_bytes),
        patience: Duration::from_millis(arguments.patience_ms),
        site_header: arguments.site_header,
        start: schedule.start,
    });
    let mut tasks = tokio::task::JoinSet::new();
    let mut numbers = due::each((0..schedule.requests).map(move |number| schedule.time_of(number)));
    while let Some(number) = numbers.recv().await {
        let (sender, record, scheduled) = (sender.clone(), record.clone(), schedule.time_of(number));
        tasks.spawn_local(async move { record.add(&sender.ask(number.into(), scheduled).await) });
        while let Some(done) = tasks.try_join_next() {
            done??;
        }
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    record.finish()
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':').with_context(|| format!("`{text}` is no header"))?;
    Ok((name.trim().parse()?, value.trim().parse()?))
}

// === impl Sender ===

impl Sender {
    /// Sends one request and judges what came of it.
    async fn ask(&self, number: u64, scheduled: Instant) -> Outcome {
        let mut outcome = Outcome { scheduled: scheduled - self.start, ..Outcome::default() };
        let request = self.question.request(number);
        let answered =
            tokio::time::timeout_at((scheduled + self.patience).into(), self.exchange(request, &mut outcome));
        outcome.verdict = match answered.await {
            Ok(Ok(body)) if outcome.status != 200 => {
                outcome.note = String::from_utf8_lossy(&body[..body.len().min(NOTE)]).into_owned();
                "status"
            }
            Ok(Ok(body)) if self.question.is_right(number, &body) => "right",
            Ok(Ok(_)) => "wrong",
            Ok(Err(failed)) => {
                outcome.note = failed.to_string();
                failed.kind()
            }
            Err(_) => "patience",
        };
        outcome.latency = scheduled.elapsed();
        outcome
    }

    async fn exchange(&self, request: Request, outcome: &mut Outcome) -> Result<bytes::Bytes, Failed> {
        let (answer, mut connection) = self.pool.send(request, &mut outcome.entry).await?;
        outcome.status = answer.status().as_u16();
        let said = |name: &HeaderName| {
            answer.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        outcome.site = said(&self.site_header).unwrap_or_default();
        outcome.error = said(&ERROR).unwrap_or_default();
        outcome.attempts = said(&ATTEMPTS).unwrap_or_default();
        let body = answer.into_body().collect().await.map_err(Failed::Cut)?.to_bytes();
        connection.answered();
        Ok(body)
    }
}

/// When requests leave.
#[derive(Clone, Copy)]
struct Schedule {
    start: Instant,
    interval: Duration,
    requests: u32,
}

impl Schedule {
    /// When a request is to leave.
    fn time_of(&self, number: u32) -> Instant {
        self.start + self.interval * number
    }
}
