//! The tables of docs/routing.md: `cargo run --release -p windrose-route-sim -- rules|faults|scale`.

use windrose_route::{MILLISECOND, Nanos, SECOND};
use windrose_route_sim::rules::RULES;
use windrose_route_sim::scenario::{self, FAULT, Spread};
use windrose_route_sim::{Brain, Record, run};

/// Where the printed numbers come from; the tests use others.
const SEED: u64 = 20_260_101;

/// Who chooses, by name, in the order of the tables.
fn brains() -> impl Iterator<Item = (&'static str, Brain)> {
    let rules = RULES.into_iter().map(|(name, make)| (name, Brain::Rule(make)));
    rules.chain([("windrose", Brain::Windrose), ("oracle", Brain::Oracle)])
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("rules") => rules(),
        Some("faults") => faults(),
        Some("scale") => scale(),
        _ => eprintln!("rules: compare rules of choice\nfaults: the thirteen faults\nscale: a thousand sites"),
    }
}

fn ms(took: Nanos) -> f64 {
    took as f64 / MILLISECOND as f64
}

fn rules() {
    for spread in [Spread::Even, Spread::Uneven, Spread::Antagonised, Spread::Distant] {
        println!("\n{spread:?}, seed {SEED}: latency in ms\n");
        println!("| rule | mean | p50 | p99 | p99.9 |\n| --- | ---: | ---: | ---: | ---: |");
        for (name, brain) in brains() {
            let record = run(scenario::fleet(spread, brain, SEED));
            let q = |q| ms(record.quantile(q, 2 * SECOND, 20 * SECOND));
            let mean = record.mean(2 * SECOND, 20 * SECOND) / MILLISECOND as f64;
            println!("| {name} | {mean:.1} | {:.1} | {:.1} | {:.1} |", q(0.5), q(0.99), q(0.999));
        }
    }
}

fn faults() {
    println!("four sites at 2, 30, 80 and 180 ms, seed {SEED}: ten seconds from the fault on, latency in ms\n");
    println!("| fault | failed | wrong | p50 | p99 | slowest | executed beyond one | last wrong after |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let calm = run(scenario::four(SEED));
    row("none", &calm);
    for number in 1.. {
        let Some((name, plan)) = scenario::fault(number, SEED) else { break };
        row(&format!("{number} {name}"), &run(plan));
    }
}

fn row(name: &str, record: &Record) {
    let q = |q| ms(record.quantile(q, FAULT.0, FAULT.1));
    let wrong = record.outcomes.iter().filter(|one| one.wrong);
    let last = wrong.clone().map(|one| one.at + one.took).max().map_or(0, |at| at - FAULT.0);
    println!(
        "| {name} | {} | {} | {:.1} | {:.1} | {:.1} | {:.1}% | {:.0} ms |",
        record.failures(),
        wrong.count(),
        q(0.5),
        q(0.99),
        q(1.0),
        record.extra_work() * 100.0,
        ms(last)
    );
}

fn scale() {
    println!("a thousand sites, a hundred gateways, 100,000 requests a second for four seconds, seed {SEED}\n");
    let scales = |name| ["least in flight", "windrose", "oracle"].contains(&name);
    for (name, brain) in brains().filter(|(name, _)| scales(*name)) {
        let record = run(scenario::thousand(100_000.0, 4 * SECOND, brain, SEED));
        println!("{name:16} {}", record.summary(2 * SECOND, 4 * SECOND));
        let (count, took) = record.choices;
        if count > 0 {
            println!("{:16} {count} decisions, {:.2} us each", "", took.as_secs_f64() * 1e6 / count as f64);
        }
    }
}
