//! The link emulator: one process that carries the packets of all sites, for the kernels that have no `tc netem`.
//!
//! Each site's network namespace has a TUN device whose other end arrives here. A packet belongs to the link from the
//! site that sent it to the site of its destination, the third octet of the address. A link has a rate and a queue of so many
//! bytes, as `tbf` has, then loses a share of the packets, then delays them; every link is its own for each direction.

mod command;
mod pipe;

use std::collections::BinaryHeap;
use std::io::{IoSliceMut, stdin};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};

use self::command::Command;
use self::pipe::{Packet, Pipe};

/// Sites at most; their numbers are 1 to one less than this.
const SITES: usize = 32;

/// The largest packet that a TUN device hands over, bytes.
const MTU: usize = 65_536;

/// Packets read from one device before the others have their turn.
const BURST: usize = 64;

/// How the emulator is started.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which packets are lost follows from this.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs until standard input closes.
///
/// # Errors
/// When a command makes no sense, or the kernel refuses.
pub fn run(arguments: &Arguments) -> Result<()> {
    // The default of 50 microseconds would be the largest error of a delay.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000)).context("set the timer slack")?;
    Emulator::new(arguments.seed).run()
}

/// Every site and every link between them.
struct Emulator {
    devices: Vec<Option<OwnedFd>>,
    /// From `i` to `j` at `i * SITES + j`.
    pipes: Vec<Pipe>,
    /// What is on its way, the next to arrive on top.
    underway: BinaryHeap<Packet>,
    /// Packets so far: keeps those that are due at the same time in order.
    sequence: u64,
    random: u64,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
}

impl Emulator {
    fn new(seed: u64) -> Emulator {
        Emulator {
            devices: (0..SITES).map(|_| None).collect(),
            pipes: vec![Pipe::default(); SITES * SITES],
            underway: BinaryHeap::new(),
            sequence: 0,
            random: seed,
            spare: Vec::new(),
        }
    }

    fn run(&mut self) -> Result<()> {
        let mut buffer = vec![0; MTU];
        loop {
            self.deliver();
            let (commands, ready) = self.wait()?;
            for site in ready {
                self.take(site, &mut buffer)?;
            }
            if commands && !self.obey()? {
                return Ok(());
            }
        }
    }

    /// Sleeps until something arrives or is due. Returns whether a command did, and which sites sent.
    fn wait(&self) -> Result<(bool, Vec<usize>)> {
        let input = stdin();
        let sites: Vec<usize> = (0..SITES).filter(|&s| self.devices[s].is_some()).collect();
        let mut polled = vec![PollFd::new(&input, PollFlags::IN)];
        polled.extend(self.devices.iter().flatten().map(|device| PollFd::new(device, PollFlags::IN)));
        let timeout = self.underway.peek().map(|packet| {
            let left = packet.due.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for packets"),
        }
        let commands = !polled[0].revents().is_empty();
        let ready = polled[1..].iter().zip(sites).filter(|(p, _)| p.revents().contains(PollFlags::IN));
        Ok((commands, ready.map(|(_, site)| site).collect()))
    }

    /// Takes what a site sent and puts it on its links.
    fn take(&mut self, site: usize, buffer: &mut [u8]) -> Result<()> {
        for _ in 0..BURST {
            let Some(device) = &self.devices[site] else { return Ok(()) };
            let length = match rustix::io::read(device, &mut *buffer) {
                Ok(length) => length,
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error).context("read from a TUN device"),
            };
            let now = Instant::now();
            if let Some(to) = destination(&buffer[..length]) {
                self.send(site, to, &buffer[..length], now);
            }
        }
        Ok(())
    }

    fn send(&mut self, from: usize, to: usize, bytes: &[u8], now: Instant) {
        let luck = next_share(&mut self.random);
        let Some(due) = self.pipes[from * SITES + to].enter(bytes.len(), now, luck) else { return };
        self.sequence += 1;
        let mut kept = self.spare.pop().unwrap_or_default();
        kept.clear();
        kept.extend_from_slice(bytes);
        self.underway.push(Packet { due, sequence: self.sequence, to, bytes: kept });
    }

    /// Hands over every packet that is due.
    fn deliver(&mut self) {
        while self.underway.peek().is_some_and(|packet| packet.due <= Instant::now()) {
            let Some(packet) = self.underway.pop() else { return };
            if let Some(device) = &self.devices[packet.to] {
                // A device refuses what arrives while its namespace goes away; such a packet is lost, as it would be.
                let _ = rustix::io::write(device, &packet.bytes);
            }
            self.spare.push(packet.bytes);
        }
    }

    /// Carries out one command and answers it; false when standard input has closed.
    fn obey(&mut self) -> Result<bool> {
        let mut text = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(stdin(), &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::empty())
            .context("standard input must be a sequenced-packet socket")?;
        if got.bytes == 0 {
            return Ok(false);
        }
        let device = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let text = std::str::from_utf8(&text[..got.bytes]).context("a command is text")?;
        let answer = self.carry_out(Command::parse(text)?, device)?;
        send(stdin(), answer.as_bytes(), SendFlags::empty()).context("answer a command")?;
        Ok(true)
    }

    fn carry_out(&mut self, command: Command, device: Option<OwnedFd>) -> Result<String> {
        match command {
            Command::Site(site) => {
                let Some(device) = device else { bail!("a site comes with its device") };
                self.devices[site] = Some(device);
            }
            Command::Link { from, to, change } => change.apply(&mut self.pipes[from * SITES + to]),
            Command::Count => return Ok(self.counts()),
        }
        Ok("ok".into())
    }

    /// `FROM TO packets bytes lost`, one line for each link that was used.
    fn counts(&self) -> String {
        let used = self.pipes.iter().enumerate().filter(|(_, pipe)| pipe.packets + pipe.lost > 0);
        let lines = used
            .map(|(at, pipe)| format!("{} {} {} {} {}", at / SITES, at % SITES, pipe.packets, pipe.bytes, pipe.lost));
        lines.collect::<Vec<_>>().join("\n") + "\n"
    }
}

/// The site that an IPv4 packet is for; nothing else is carried.
fn destination(packet: &[u8]) -> Option<usize> {
    let is_ipv4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
    let site = usize::from(*packet.get(18)?);
    (is_ipv4 && site < SITES).then_some(site)
}

/// The next of a row of numbers in `0..1` (SplitMix64).
fn next_share(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_octet_of_the_destination_names_the_site() {
        let mut packet = [0; 20];
        packet[0] = 0x45;
        packet[16..20].copy_from_slice(&[10, 77, 3, 1]);
        assert_eq!(destination(&packet), Some(3));
        packet[18] = 200;
        assert_eq!(destination(&packet), None, "no such site");
        packet[18] = 3;
        packet[0] = 0x60;
        assert_eq!(destination(&packet), None, "IPv6");
        assert_eq!(destination(&packet[..10]), None, "cut");
    }

    #[test]
    fn shares_are_even_and_repeatable() {
        let row = |seed| {
            let mut state = seed;
            (0..10_000).map(|_| next_share(&mut state)).collect::<Vec<_>>()
        };
        let first = row(7);
        assert_eq!(first, row(7));
        assert_ne!(first, row(8));
        let under = first.iter().filter(|&&share| share < 0.2).count();
        assert!((1_800..2_200).contains(&under), "{under} of 10000 under 0.2");
    }
}
