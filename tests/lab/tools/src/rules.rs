//! Rules of choice on real gateways: an open-loop load whose client chooses a gateway for each request, by one rule after
//! the other, with the same requests at the same times.
//!
//! The gateways run in turns ([`slices`]), so that each is a server with as much of a core as it was given, however many
//! cores the machine has: their queues are real, and none of them takes time from another. They know the client as a
//! peer, and tell it their load as they tell any gateway.

mod chooser;
mod gateway;
mod plan;
mod slices;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;
use tokio::task::JoinSet;
use windrose_route::{Event, Nanos, Random};
use windrose_route_sim::rules::RULES;
use windrose_route_sim::scenario::Spread;

use self::chooser::Chooser;
use self::gateway::Gateway;
use self::plan::{Arrival, Load};
use self::slices::Slices;
use crate::{due, peer};

/// What an inference takes on average while a gateway has a core.
const WORK: Duration = Duration::from_millis(2);
/// Requests at the same time at each gateway, and for how long, to see what they can answer.
const FULL: (usize, Duration) = (4, Duration::from_secs(3));
/// Every rule begins with knowing nothing; what comes before is not counted.
const WARM: Duration = Duration::from_secs(2);

/// How the comparison is started.
#[derive(clap::Args)]
pub struct Arguments {
    /// A gateway: the address of its peer listener and the number of its process, `127.0.0.1:8002=4711`. It serves
    /// `models/test/loop.onnx` as `loop` with one session, and is stopped and continued by signals.
    #[arg(long = "gateway", required = true)]
    gateways: Vec<Process>,
    /// The certificate of a site of their fleet.
    #[arg(long)]
    certificate: PathBuf,
    /// Its key.
    #[arg(long)]
    key: PathBuf,
    /// The digest of the model, in hex.
    #[arg(long)]
    digest: String,
    /// How unlike each other the gateways are: even, uneven (every second is three times slower), or antagonised (others
    /// come and go at each).
    #[arg(long, value_parser = spread)]
    spread: Spread,
    /// Of the requests and of what is random in the rules.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// For how long each rule's requests leave; the first two seconds are not counted.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// An answer that takes longer is late.
    #[arg(long, default_value_t = 100)]
    late_ms: u64,
    /// How long a request waits for an answer.
    #[arg(long, default_value_t = 2_000)]
    patience_ms: u64,
}

/// A gateway's process.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Process {
    address: SocketAddr,
    number: Pid,
}

impl FromStr for Process {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Process> {
        let (address, number) = text.split_once('=').context("a gateway is ADDRESS=PROCESS")?;
        Ok(Process { address: address.parse()?, number: Pid::from_raw(number.parse()?).context("no process is 0")? })
    }
}

fn spread(text: &str) -> Result<Spread> {
    Ok(match text {
        "even" => Spread::Even,
        "uneven" => Spread::Uneven,
        "antagonised" => Spread::Antagonised,
        _ => bail!("even, uneven or antagonised"),
    })
}

/// Compares the rules. Prints what the gateways can answer, then a line for each rule: its name, and after tabs how many
/// requests were counted, how many failed and how many were late, and the median and the 99th percentile of the answered,
/// microseconds.
///
/// # Errors
/// When a gateway cannot be reached, or does not answer at all.
pub fn run(arguments: Arguments) -> Result<()> {
    ensure!(arguments.seconds > WARM.as_secs_f64(), "the first {WARM:?} are not counted");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, compare(arguments))
}

async fn compare(arguments: Arguments) -> Result<()> {
    let tls = peer::connector(&arguments.certificate, &arguments.key)?;
    let mut gateways = Vec::new();
    for Process { address, .. } in &arguments.gateways {
        gateways.push(Gateway::connect(*address, &tls, &arguments.digest, arguments.patience_ms).await?);
    }
    let loops = WORK.as_secs_f64() / seconds_of_a_loop(&gateways[0]).await?;
    let numbers: Vec<Pid> = arguments.gateways.iter().map(|process| process.number).collect();
    let slower: Vec<u64> = (0..numbers.len()).map(|index| arguments.spread.slower(index)).collect();
    let _slices = Slices::begin(&numbers, &slower);
    let capacity = capacity(&gateways, loops, arguments.seed).await?;
    println!("# {loops:.0} loops for {WORK:?} of a core; {capacity:.0} requests a second at most");
    let (spread, seconds) = (arguments.spread, arguments.seconds);
    let load = Load { spread, replicas: gateways.len(), capacity, loops, seconds };
    let arrivals: Rc<[Arrival]> = load.arrivals(arguments.seed).into();
    let (count, seed) = (gateways.len(), arguments.seed);
    let rules = RULES.into_iter().map(|(name, make)| (name, Chooser::rule(make(), count, seed)));
    let mut rules: Vec<_> = rules.chain([("windrose", Chooser::windrose(count, seed))]).collect();
    // Whoever comes first with one seed comes last with another.
    let first = seed as usize % rules.len();
    rules.rotate_left(first);
    for (name, chooser) in rules {
        let outcomes = Run::new(&gateways, chooser, &arguments).all(&arrivals).await;
        println!("{name}\t{}", summary(outcomes, Duration::from_millis(arguments.late_ms)));
    }
    Ok(())
}

/// What the graph takes for one of its loops, where nothing else happens: the quickest of some, since whatever disturbs makes
/// it longer.
async fn seconds_of_a_loop(gateway: &Gateway) -> Result<f64> {
    const LOOPS: u64 = 2_000;
    let mut quickest = [f64::INFINITY; 2];
    for _ in 0..20 {
        for (loops, quickest) in [1, LOOPS + 1].into_iter().zip(&mut quickest) {
            let began = Instant::now();
            let (event, _) = gateway.ask(loops, 0).await;
            ensure!(matches!(event, Event::Whole { .. }), "a gateway does not answer: {event:?}");
            *quickest = quickest.min(began.elapsed().as_secs_f64());
        }
    }
    Ok(((quickest[1] - quickest[0]) / LOOPS as f64).max(1e-9))
}

/// What the gateways answer in a second when each always has something to do, as they run now.
async fn capacity(gateways: &[Gateway], loops: f64, seed: u64) -> Result<f64> {
    let (at_once, span) = FULL;
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for (client, gateway) in gateways.iter().cycle().take(at_once * gateways.len()).enumerate() {
        let gateway = gateway.clone();
        let mut random = Random::seeded(seed ^ client as u64);
        tasks.spawn_local(async move {
            let mut count = 0u32;
            while began.elapsed() < span {
                let (event, _) = gateway.ask(plan::loops(loops, &mut random), 0).await;
                count += u32::from(matches!(event, Event::Whole { .. }) && began.elapsed() < span);
            }
            count
        });
    }
    let count: u32 = tasks.join_all().await.into_iter().sum();
    ensure!(count > 0, "no gateway answers");
    Ok(f64::from(count) / span.as_secs_f64())
}

/// One rule's run.
struct Run {
    gateways: Vec<Gateway>,
    chooser: RefCell<Chooser>,
    patience: Duration,
    start: Instant,
}

/// What became of one of our requests.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    /// When it was to leave, from the beginning.
    at: Duration,
    /// From then to the end of the answer; `None` where there was none.
    took: Option<Duration>,
}

// === impl Run ===

impl Run {
    fn new(gateways: &[Gateway], chooser: Chooser, arguments: &Arguments) -> Rc<Run> {
        Rc::new(Run {
            gateways: gateways.to_vec(),
            chooser: RefCell::new(chooser),
            patience: Duration::from_millis(arguments.patience_ms),
            start: Instant::now() + Duration::from_millis(10),
        })
    }

    /// Sends everything at its time, and waits for the last answer.
    async fn all(self: Rc<Run>, arrivals: &Rc<[Arrival]>) -> Vec<Outcome> {
        let times: Vec<Instant> = arrivals.iter().map(|arrival| self.start + arrival.at).collect();
        let mut due = due::each(times.into_iter());
        let mut tasks = JoinSet::new();
        while let Some(number) = due.recv().await {
            tasks.spawn_local(self.clone().one(arrivals[number as usize]));
        }
        tasks.join_all().await.into_iter().flatten().collect()
    }

    /// Sends a request; what becomes of others' is not told.
    async fn one(self: Rc<Run>, arrival: Arrival) -> Option<Outcome> {
        let Arrival { at, loops, others } = arrival;
        let until = self.start + at + self.patience;
        if let Some(replica) = others {
            let _ = tokio::time::timeout_at(until.into(), self.gateways[replica].ask(loops, 0)).await;
            return None;
        }
        let failed = Some(Outcome { at, took: None });
        let deadline = (at + self.patience).as_nanos() as Nanos;
        let now = self.now();
        let Some(chosen) = self.chooser.borrow_mut().choose(deadline, now) else { return failed };
        let probes = self.chooser.borrow_mut().probes();
        for replica in probes {
            tokio::task::spawn_local(self.clone().probe(replica));
        }
        let answered = tokio::time::timeout_at(until.into(), self.gateways[chosen.replica].ask(loops, now)).await;
        let took = self.start.elapsed().saturating_sub(at);
        let (event, load) = answered.unwrap_or((Event::TimedOut, None));
        self.chooser.borrow_mut().ended(chosen, event, load, self.now());
        let whole = matches!(event, Event::Whole { .. });
        Some(Outcome { at, took: whole.then_some(took) })
    }

    async fn probe(self: Rc<Run>, replica: usize) {
        // A probe without an answer tells nothing.
        if let Ok(Ok(load)) = tokio::time::timeout(self.patience, self.gateways[replica].load()).await {
            self.chooser.borrow_mut().probed(replica, load, self.now());
        }
    }

    fn now(&self) -> Nanos {
        self.start.elapsed().as_nanos() as Nanos
    }
}

/// How many requests were counted, failed, and were late; median and 99th percentile in microseconds.
fn summary(outcomes: Vec<Outcome>, late: Duration) -> String {
    let counted: Vec<Outcome> = outcomes.into_iter().filter(|outcome| outcome.at >= WARM).collect();
    let mut took: Vec<Duration> = counted.iter().filter_map(|outcome| outcome.took).collect();
    took.sort_unstable();
    let quantile = |q: f64| {
        let index = (took.len().saturating_sub(1) as f64 * q).ceil() as usize;
        took.get(index).map_or(0, Duration::as_micros)
    };
    let failed = counted.len() - took.len();
    let slow = took.iter().filter(|&&took| took > late).count();
    format!("{}\t{failed}\t{slow}\t{}\t{}", counted.len(), quantile(0.5), quantile(0.99))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_an_address_and_a_process() {
        let read: Process = "127.0.0.1:8002=4711".parse().unwrap();
        assert_eq!((read.address.port(), read.number), (8002, Pid::from_raw(4711).unwrap()));
        for text in ["127.0.0.1:8002", "127.0.0.1=1", "127.0.0.1:8002=0", "127.0.0.1:8002=x"] {
            assert!(text.parse::<Process>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_summary_leaves_out_the_beginning_and_counts_what_failed() {
        let outcome = |at_ms, took_ms: u64| Outcome {
            at: Duration::from_millis(at_ms),
            took: (took_ms > 0).then(|| Duration::from_millis(took_ms)),
        };
        let mut outcomes = vec![outcome(1_999, 900), outcome(2_000, 0), outcome(5_000, 101)];
        outcomes.extend((1..=99).map(|ms| outcome(2_000 + ms, ms)));
        assert_eq!(summary(outcomes, Duration::from_millis(100)), "101\t1\t1\t51000\t101000");
        assert_eq!(summary(Vec::new(), WARM), "0\t0\t0\t0\t0");
    }
}
