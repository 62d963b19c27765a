//! The server's side: starts a child, feeds it the job, passes its progress on, and ends it when its time is over.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use windrose_engine::Calibration;
use windrose_engine::process::Program;

use super::job::{Event, Job, Line, Prepared, Status};
use super::{BATCHING, PrepareError, explain};

/// Progress, for whoever wants to see it.
pub type Progress = mpsc::Sender<Event>;

/// The most that is read from a child's standard output, bytes.
const MOST: u64 = 8 << 20;
/// How long it may take to learn how a child ended that has closed its standard output, and what it said last.
const ENDING: Duration = Duration::from_secs(5);
/// How much of the end of standard error is kept, bytes.
const TAIL: usize = 4 << 10;

/// Runs one preparation.
///
/// # Errors
/// [`PrepareError::Refused`] says what failed, however the child ended.
pub async fn run(job: Job, progress: Progress) -> Result<Prepared, PrepareError> {
    let (done, outcome) = oneshot::channel();
    // The child asks the kernel to die with the thread that made it, so that thread must live as long as the child.
    let thread = std::thread::Builder::new().name("prepare".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let result = match runtime {
            Ok(runtime) => runtime.block_on(with_second_try(job, &progress)),
            Err(error) => Err(host(error)),
        };
        let _ = done.send(result);
    });
    thread.map_err(host)?;
    outcome.await.unwrap_or_else(|_| Err(PrepareError::Host("the supervisor died".into())))
}

/// Runs a preparation; where the child did not survive several rows at once, once more without trying that.
async fn with_second_try(mut job: Job, progress: &Progress) -> Result<Prepared, PrepareError> {
    let mut stage = None;
    match supervise(&job, progress, &mut stage).await {
        Err(PrepareError::Refused(why)) if stage.as_deref() == Some(BATCHING) => {
            let refused = Calibration::refused(why);
            job.batching = job.graphs.keys().map(|name| (name.clone(), refused.clone())).collect();
            supervise(&job, progress, &mut None).await
        }
        outcome => outcome,
    }
}

fn host(error: impl std::fmt::Display) -> PrepareError {
    PrepareError::Host(error.to_string())
}

/// Kills the whole group of the child when it goes out of scope.
struct Group(Option<rustix::process::Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may be gone already.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

fn start() -> std::io::Result<Child> {
    let mut command = Command::from(Program::this("prepare").command());
    command.kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn()
}

async fn supervise(job: &Job, progress: &Progress, stage: &mut Option<String>) -> Result<Prepared, PrepareError> {
    let mut child = start().map_err(host)?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw));
    let mut line = serde_json::to_vec(job).map_err(host)?;
    line.push(b'\n');
    let mut stdin = child.stdin.take().ok_or_else(|| host("no standard input"))?;
    let stdout = child.stdout.take().ok_or_else(|| host("no standard output"))?;
    let stderr = child.stderr.take().ok_or_else(|| host("no standard error"))?;
    let stderr = tokio::spawn(tail(stderr));
    let talk = async {
        // A child that died at once is told about below, by how it ended.
        let _ = stdin.write_all(&line).await;
        lines(stdout, progress, stage).await
    };
    match tokio::time::timeout(job.budget.wall, talk).await {
        Ok(Some(outcome)) => return outcome,
        Ok(None) => {}
        Err(_) => return Err(PrepareError::Refused(explain::too_long(stage.as_deref(), &job.budget))),
    }
    let status = tokio::time::timeout(ENDING, child.wait()).await;
    match status {
        Ok(Ok(status)) => {
            group.0 = None;
            // What it has started may hold the pipe open.
            let stderr = tokio::time::timeout(ENDING, stderr).await;
            let stderr = stderr.ok().and_then(Result::ok).unwrap_or_default();
            Err(PrepareError::Refused(explain::ended(stage.as_deref(), status, &stderr, &job.budget)))
        }
        Ok(Err(error)) => Err(host(error)),
        Err(_) => Err(PrepareError::Refused(explain::too_long(stage.as_deref(), &job.budget))),
    }
}

/// Reads lines to the end; what is not a line of ours was printed by a native library, and is skipped.
async fn lines(
    stdout: tokio::process::ChildStdout,
    progress: &Progress,
    stage: &mut Option<String>,
) -> Option<Result<Prepared, PrepareError>> {
    let mut lines = BufReader::new(stdout.take(MOST)).lines();
    let mut outcome = None;
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(Line::Event(event)) => {
                if event.status == Status::Started {
                    *stage = Some(event.stage.clone());
                }
                // Progress is for people: where nobody reads it, it is dropped.
                let _ = progress.try_send(event);
            }
            Ok(Line::Done(prepared)) => outcome = Some(Ok(*prepared)),
            Ok(Line::Refused(message)) => outcome = Some(Err(PrepareError::Refused(message))),
            Ok(Line::Host(message)) => outcome = Some(Err(PrepareError::Host(message))),
            Ok(Line::Log(message)) => tracing::error!(message, "a preparation could not be run"),
            Err(_) => {}
        }
        if outcome.is_some() {
            break;
        }
    }
    outcome
}

/// The end of what the child wrote to its standard error.
async fn tail(stderr: tokio::process::ChildStderr) -> String {
    let mut stderr = stderr;
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        if kept.len() > 2 * TAIL {
            kept.drain(..kept.len() - TAIL);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}
