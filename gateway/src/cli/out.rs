//! What commands print. The reader of a pipe may go at any time (`windrose inspect x | head -1`): that ends the program
//! quietly. The signal that does this to other programs stays off, since a socket may raise it, too.

use std::io::{ErrorKind, Write};

/// The exit status of a program that SIGPIPE ended, as shells have it.
const NOBODY_READS: i32 = 141;

/// Writes to standard output.
pub(super) fn say(text: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(text).and_then(|()| stdout.flush()) {
        if error.kind() != ErrorKind::BrokenPipe {
            tell(&format!("error: standard output: {error}"));
            std::process::exit(1);
        }
        std::process::exit(NOBODY_READS);
    }
}

/// Writes a line to standard error, if anybody reads it.
pub(super) fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
