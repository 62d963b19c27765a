//! A command that does what it must not, by its argument; a fixture of the sandbox's tests. Without one it copies its
//! standard input to its standard output.
use std::hint::black_box;
use std::io::{self, Write};
use std::time::Duration;
use std::{env, process, thread};

fn main() -> io::Result<()> {
    match env::args().nth(1).as_deref() {
        Some("loop") => spin(),
        Some("sleep") => thread::sleep(Duration::from_secs(3600)),
        Some("memory") => hoard_memory(),
        Some("recursion") => println!("{}", recurse(1)),
        Some("output") => flood(io::stdout())?,
        Some("log") => flood(io::stderr())?,
        Some("trap") => process::abort(),
        Some("fail") => process::exit(1),
        _ => _ = io::copy(&mut io::stdin(), &mut io::stdout())?,
    }
    Ok(())
}

fn spin() -> ! {
    let mut n = 0u64;
    loop {
        n = black_box(n.wrapping_add(1));
    }
}

fn hoard_memory() -> ! {
    let mut kept = Vec::new();
    loop {
        kept.push(black_box(vec![1u8; 1 << 20]));
    }
}

#[expect(unconditional_recursion, reason = "that is the attack")]
fn recurse(depth: u64) -> u64 {
    black_box(recurse(black_box(depth + 1))) + depth
}

fn flood(mut to: impl Write) -> io::Result<()> {
    loop {
        to.write_all(b"all work and no play makes Jack a dull boy\n")?;
    }
}
