//! The commands of the harness, as text: `site 3` with a descriptor, `link 1 3 delay_us=15000 loss=0.2`, `count`.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::SITES;
use super::pipe::Pipe;

/// One command.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// A site's device comes along.
    Site(usize),
    /// Changes one direction of one link; what is not named stays.
    Link {
        /// The site that sends.
        from: usize,
        /// The site that receives.
        to: usize,
        /// What becomes different.
        change: Change,
    },
    /// Asks what was carried so far.
    Count,
}

/// What becomes different on a link.
#[derive(Debug, Default, PartialEq)]
pub struct Change {
    up: Option<bool>,
    delay: Option<Duration>,
    rate: Option<u64>,
    queue: Option<u64>,
    loss: Option<f64>,
}

// === impl Command ===

impl Command {
    /// Reads a command.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn parse(text: &str) -> Result<Command> {
        let mut words = text.split_whitespace();
        let mut next = || words.next().with_context(|| format!("`{text}` lacks a word"));
        match next()? {
            "site" => Ok(Command::Site(site(next()?)?)),
            "link" => {
                let (from, to) = (site(next()?)?, site(next()?)?);
                Ok(Command::Link { from, to, change: Change::parse(words)? })
            }
            "count" => Ok(Command::Count),
            other => bail!("no command `{other}`"),
        }
    }
}

fn site(word: &str) -> Result<usize> {
    let site = word.parse().with_context(|| format!("`{word}` is no site"))?;
    ensure!(site > 0 && site < SITES, "sites are 1 to {}", SITES - 1);
    Ok(site)
}

// === impl Change ===

impl Change {
    fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Result<Change> {
        let mut change = Change::default();
        for word in words {
            let (key, value) = word.split_once('=').with_context(|| format!("`{word}` is no key=value"))?;
            match key {
                "up" => change.up = Some(value != "0"),
                "delay_us" => change.delay = Some(Duration::from_micros(value.parse()?)),
                "rate" => change.rate = Some(value.parse()?),
                "queue" => change.queue = Some(value.parse()?),
                "loss" => change.loss = Some(value.parse()?),
                _ => bail!("a link has no `{key}`"),
            }
        }
        Ok(change)
    }

    /// Changes a link.
    pub fn apply(&self, pipe: &mut Pipe) {
        pipe.up = self.up.unwrap_or(pipe.up);
        pipe.delay = self.delay.unwrap_or(pipe.delay);
        pipe.rate = self.rate.unwrap_or(pipe.rate);
        pipe.queue = self.queue.unwrap_or(pipe.queue);
        pipe.loss = self.loss.unwrap_or(pipe.loss);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        assert_eq!(Command::parse("site 3").unwrap(), Command::Site(3));
        assert_eq!(Command::parse("count\n").unwrap(), Command::Count);
        let change = Change { delay: Some(Duration::from_millis(15)), loss: Some(0.2), ..Change::default() };
        let link = Command::Link { from: 1, to: 3, change };
        assert_eq!(Command::parse("link 1 3 delay_us=15000 loss=0.2").unwrap(), link);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "site", "site 0", "site 32", "link 1", "link 1 2 delay=1", "link 1 2 up", "jump 1"] {
            assert!(Command::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_change_leaves_the_rest() {
        let mut pipe = Pipe::default();
        (pipe.up, pipe.rate) = (true, 5);
        let Command::Link { change, .. } = Command::parse("link 1 2 queue=7").unwrap() else { panic!("no link") };
        change.apply(&mut pipe);
        assert_eq!((pipe.up, pipe.rate, pipe.queue), (true, 5, 7));
    }
}
