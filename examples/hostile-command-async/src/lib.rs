//! A command of WASI 0.3 that does what it must not, by its argument; a fixture of the sandbox's tests. Without one it
//! copies its standard input to its standard output.
use std::hint::black_box;

use wit_bindgen::{StreamResult, StreamWriter};

#[allow(unsafe_code, reason = "generated from the contract")]
mod bindings {
    wit_bindgen::generate!({
        path: "../../guest-sdk/wit",
        inline: "
            package windrose:hostile;
            world hostile {
                import wasi:cli/environment@0.3.0;
                import wasi:cli/exit@0.3.0;
                import wasi:cli/stdin@0.3.0;
                import wasi:cli/stdout@0.3.0;
                import wasi:cli/stderr@0.3.0;
                import wasi:clocks/monotonic-clock@0.3.0;
                export wasi:cli/run@0.3.0;
            }
        ",
        world: "windrose:hostile/hostile",
        generate_all,
    });

    use super::Hostile;
    export!(Hostile);
}

use bindings::exports::wasi::cli0_3_0::run::Guest;
use bindings::wasi::cli0_3_0::{environment, exit, stderr, stdin, stdout};
use bindings::wasi::clocks0_3_0::monotonic_clock;
use bindings::wit_stream;

/// Nanoseconds.
const HOUR: u64 = 3_600_000_000_000;
/// Bytes that are read at once.
const CHUNK: usize = 16 * 1024;

struct Hostile;

impl Guest for Hostile {
    async fn run() -> Result<(), ()> {
        let arguments = environment::get_arguments();
        match arguments.get(1).map(String::as_str) {
            Some("loop") => spin(),
            Some("sleep") => monotonic_clock::wait_for(HOUR).await,
            Some("memory") => hoard_memory(),
            Some("recursion") => _ = black_box(recurse(1)),
            Some("output") => {
                let (to, data) = wit_stream::new();
                let _written = stdout::write_via_stream(data);
                flood(to).await;
            }
            Some("log") => {
                let (to, data) = wit_stream::new();
                let _written = stderr::write_via_stream(data);
                flood(to).await;
            }
            Some("trap") => std::process::abort(),
            Some("fail") => return Err(()),
            Some("exit") => exit::exit_with_code(3),
            _ => return copy().await,
        }
        Ok(())
    }
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

/// Writes as long as somebody reads.
async fn flood(mut to: StreamWriter<u8>) {
    while to.write_all(b"all work and no play makes Jack a dull boy\n".to_vec()).await.is_empty() {}
}

/// Copies its standard input to its standard output.
async fn copy() -> Result<(), ()> {
    let (mut from, _read) = stdin::read_via_stream();
    let (mut to, data) = wit_stream::new();
    let _written = stdout::write_via_stream(data);
    loop {
        let (status, chunk) = from.read(Vec::with_capacity(CHUNK)).await;
        if !to.write_all(chunk).await.is_empty() {
            return Err(());
        }
        if !matches!(status, StreamResult::Complete(_)) {
            return Ok(());
        }
    }
}
