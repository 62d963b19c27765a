//! A closed-loop load generator: each connection sends its next request when the last answer is whole.
//!
//! It speaks just enough HTTP/1.1 for answers with a `Content-Length`, so that it takes as little as it can of the two
//! cores that it shares with the server under test.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What one load run saw.
pub struct Seen {
    /// Latencies of what was answered, sorted.
    latencies: Vec<Duration>,
    /// Requests that the server refused because it had too many.
    pub refused: usize,
    /// How long the run took.
    pub elapsed: Duration,
}

impl Seen {
    /// Requests answered.
    pub fn count(&self) -> usize {
        self.latencies.len()
    }

    /// Answers a second.
    pub fn rate(&self) -> f64 {
        self.count() as f64 / self.elapsed.as_secs_f64()
    }

    /// What a program reads: answers, seconds, and latencies in microseconds.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "count": self.count(),
            "refused": self.refused,
            "seconds": self.elapsed.as_secs_f64(),
            "p50_us": self.quantile_us(0.5),
            "p99_us": self.quantile_us(0.99),
        })
    }

    /// The latency that a share of the requests stays under, microseconds.
    pub fn quantile_us(&self, q: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * q).round() as usize;
        self.latencies.get(at).map_or(0.0, |d| d.as_secs_f64() * 1e6)
    }
}

/// Sends `request` over `connections` connections to `port` on loopback for `time`. Any answer but 200 and
/// a refusal for load is an error.
pub async fn run(port: u16, request: &'static [u8], connections: usize, time: Duration) -> Result<Seen> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.context("connect to the server under test")?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let start = Instant::now();
    let tasks: Vec<_> = streams.into_iter().map(|s| tokio::spawn(connection(s, request, start + time))).collect();
    let (mut latencies, mut refused) = (Vec::new(), 0);
    for task in tasks {
        let (answered, not) = task.await??;
        latencies.extend(answered);
        refused += not;
    }
    let elapsed = start.elapsed();
    latencies.sort_unstable();
    Ok(Seen { latencies, refused, elapsed })
}

/// The latencies of one connection, and how many of its requests were refused.
async fn connection(mut stream: TcpStream, request: &[u8], until: Instant) -> Result<(Vec<Duration>, usize)> {
    let (mut latencies, mut refused) = (Vec::new(), 0);
    let mut buffer = Vec::with_capacity(1 << 16);
    while Instant::now() < until {
        let sent = Instant::now();
        stream.write_all(request).await?;
        match answer(&mut stream, &mut buffer).await? {
            true => latencies.push(sent.elapsed()),
            false => refused += 1,
        }
    }
    Ok((latencies, refused))
}

/// Reads one whole answer. Whether it is one, and no refusal for load.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<bool> {
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            bail!("the server closed the connection in the middle of an answer");
        }
        let Some(head) = buffer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
        let status = text.get(9..12).unwrap_or_default();
        ensure!(matches!(status, "200" | "429" | "503"), "answer: {}", String::from_utf8_lossy(buffer));
        let answered = status == "200";
        let length = text.lines().find_map(|l| l.strip_prefix("content-length:"));
        let length: usize = length.context("an answer without a content-length")?.trim().parse()?;
        let whole = head + 4 + length;
        while buffer.len() < whole {
            if stream.read_buf(buffer).await? == 0 {
                bail!("the server closed the connection in the middle of a body");
            }
        }
        return Ok(answered);
    }
}
