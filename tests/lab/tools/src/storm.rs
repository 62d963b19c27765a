//! A closed load: each connection sends the same request again as soon as its answer is whole.
//!
//! For what a request costs a proxy, where the question is not what a client sees at a given rate. It speaks just
//! enough HTTP/1.1, with blocking sockets, to take little of the processor that it shares with what it measures.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How the closed load is started.
#[derive(clap::Args)]
pub struct Arguments {
    /// The server.
    #[arg(long)]
    address: SocketAddr,
    /// A file with one whole request, head and body.
    #[arg(long)]
    request: PathBuf,
    /// Connections, each with one request at a time.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// How long.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

/// Sends the load, and prints how many requests were answered, and their median and 99th percentile, microseconds.
///
/// # Errors
/// When an answer is not 200, or a connection fails.
pub fn run(arguments: &Arguments) -> Result<()> {
    let request = std::fs::read(&arguments.request)?;
    let until = Instant::now() + Duration::from_secs_f64(arguments.seconds);
    let mut times = std::thread::scope(|scope| -> Result<Vec<Duration>> {
        let one = || connection(arguments.address, &request, until);
        let threads: Vec<_> = (0..arguments.connections).map(|_| scope.spawn(one)).collect();
        let mut times = Vec::new();
        for thread in threads {
            times.extend(thread.join().unwrap_or_else(|_| bail!("a connection's thread ended early"))?);
        }
        Ok(times)
    })?;
    ensure!(!times.is_empty(), "no request was answered");
    times.sort_unstable();
    let quantile = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize].as_micros();
    println!("{} {} {}", times.len(), quantile(0.5), quantile(0.99));
    Ok(())
}

fn connection(address: SocketAddr, request: &[u8], until: Instant) -> Result<Vec<Duration>> {
    let stream = TcpStream::connect(address).context("connect")?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(1 << 16, &stream);
    let mut times = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        (&stream).write_all(request)?;
        answer(&mut reader)?;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// Reads one answer to its end, with a length or in chunks.
fn answer(reader: &mut impl BufRead) -> Result<()> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 200"), "the answer was `{}`", line.trim());
    let (mut length, mut chunked) = (0, false);
    loop {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "the connection ended in a head");
        let lower = line.trim().to_ascii_lowercase();
        match lower.split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse()?,
            Some(("transfer-encoding", _)) => chunked = true,
            Some(_) => {}
            None => break,
        }
    }
    if !chunked {
        return skip(reader, length);
    }
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim(), 16).context("a chunk without a size")?;
        skip(reader, size + 2)?;
        if size == 0 {
            return Ok(());
        }
    }
}

fn skip(reader: &mut impl BufRead, bytes: u64) -> Result<()> {
    let skipped = std::io::copy(&mut reader.take(bytes), &mut std::io::sink())?;
    ensure!(skipped == bytes, "the connection ended in a body");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_to_its_end_and_no_further() {
        let text =
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
            4\r\nwxyz\r\n0\r\n\r\nnext";
        let mut reader = &text[..];
        answer(&mut reader).unwrap();
        answer(&mut reader).unwrap();
        assert_eq!(reader, b"next");
    }

    #[test]
    fn what_is_cut_or_no_success_is_an_error() {
        for text in ["HTTP/1.1 503 no\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", "HTTP/1.1 200 OK\r\n"]
        {
            assert!(answer(&mut text.as_bytes()).is_err(), "{text}");
        }
    }
}
