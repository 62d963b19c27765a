//! For `wasmtime run -S nn`: a graph's name or file as the argument, rows of four numbers on standard input.
use std::process::ExitCode;

mod nn;

fn main() -> ExitCode {
    let graph = std::env::args().nth(1).unwrap_or_default();
    let answered = nn::open(&graph).and_then(|graph| {
        let rows = std::io::stdin().lines().map_while(Result::ok);
        rows.map(|row| nn::classify(&graph, &row)).collect::<Result<Vec<_>, _>>()
    });
    match answered {
        Ok(lines) => {
            lines.iter().for_each(|line| println!("{line}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
