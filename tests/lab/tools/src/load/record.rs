//! What became of every request, as lines of text for whoever plots and judges.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};

/// What became of one request.
#[derive(Debug, Default)]
pub struct Outcome {
    /// When it was to leave, from the start of the load.
    pub scheduled: Duration,
    /// From then to the last byte of the answer, or to the failure.
    pub latency: Duration,
    /// The answer's status; 0 without an answer.
    pub status: u16,
    /// `right`, or one word for what was not.
    pub verdict: &'static str,
    /// Which site the answer names.
    pub site: String,
    /// The word for its error in the answer's header, where it has one.
    pub error: String,
    /// How many attempts the answer says that there were; empty where it says nothing.
    pub attempts: String,
    /// The address that the request was sent to.
    pub entry: String,
    /// Why it failed, in words.
    pub note: String,
}

/// The file of outcomes.
pub struct Record {
    file: RefCell<BufWriter<File>>,
}

impl Record {
    /// Creates the file. Its first line says when the load begins on the monotonic clock, in microseconds.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, start: Instant) -> Result<Record> {
        let mut file = BufWriter::new(File::create(path)?);
        let now = clock_gettime(ClockId::Monotonic);
        let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
        let start = now + start.saturating_duration_since(Instant::now());
        writeln!(file, "{}", start.as_micros())?;
        Ok(Record { file: RefCell::new(file) })
    }

    /// Writes one outcome: tabs between the fields, times in microseconds.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&self, outcome: &Outcome) -> Result<()> {
        let Outcome { scheduled, latency, status, verdict, site, error, attempts, entry, note } = outcome;
        let (scheduled, latency) = (scheduled.as_micros(), latency.as_micros());
        let note = note.replace(['\t', '\n', '\r'], " ");
        let said = format!("{site}\t{error}\t{attempts}");
        Ok(writeln!(self.file.borrow_mut(), "{scheduled}\t{latency}\t{status}\t{verdict}\t{said}\t{entry}\t{note}")?)
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(&self) -> Result<()> {
        Ok(self.file.borrow_mut().flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let record = Record::create(&path, Instant::now()).unwrap();
        let outcome = Outcome {
            scheduled: Duration::from_millis(2),
            latency: Duration::from_micros(2_345),
            status: 503,
            verdict: "status",
            site: "near".into(),
            error: "unavailable".into(),
            attempts: "3".into(),
            entry: "10.77.5.1:8000".into(),
            note: "two\nlines\tand a tab".into(),
        };
        record.add(&outcome).unwrap();
        record.finish().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].parse::<u64>().unwrap() > 0);
        assert_eq!(lines[1..], ["2000\t2345\t503\tstatus\tnear\tunavailable\t3\t10.77.5.1:8000\ttwo lines and a tab"]);
    }
}
