//! Waiting jobs by who asked for them, and whose turn it is.
//!
//! Each caller, a tenant in the name of one model, has a lane. Lanes are served in the order of a virtual time that
//! advances with the rows that were taken from them, divided by their weight (start-time fair queueing): a caller that
//! floods its lane waits behind itself. A lane that was idle starts at the present, and saves nothing up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::{Ticket, Waiting};
use crate::batch::{Batch, Charge, same_key};
use crate::padding::Pads;
use crate::turnstile::{Account, Turnstile};

/// Virtual time of one row at weight 1.
const ROW: u64 = 1 << 16;
/// Empty lanes that are kept, so that a caller that comes back needs no new one.
const KEPT: usize = 16;
/// Jobs that are looked at for one batch, so that the time under the lock is bounded.
const LOOKED_AT: usize = 512;

/// All lanes of one queue.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    /// The present: the virtual time at which the last turn began.
    time: u64,
    jobs: usize,
    rows: usize,
    /// How jobs of different lengths run together, where they may.
    pub pads: Option<Arc<Pads>>,
    /// The cores that runs share with other graphs'; `None` where they use none.
    cores: Option<Arc<Turnstile>>,
}

#[derive(Debug)]
struct Lane {
    tenant: Arc<str>,
    name: Arc<str>,
    weight: u64,
    /// When its next turn begins.
    time: u64,
    /// In the order of their tickets.
    jobs: VecDeque<(Ticket, Waiting)>,
    /// Their rows.
    rows: usize,
    /// What the caller has used of the cores.
    account: Arc<Account>,
    /// Whether its head came when nothing of this lane waited, and the caller was within its share of the cores.
    calm: bool,
}

/// Rows as they are counted here: a job without an axis is one.
fn rows(waiting: &Waiting) -> usize {
    waiting.job.rows.unwrap_or(1)
}

fn same_text(a: &Arc<str>, b: &Arc<str>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

impl Waiting {
    /// Whether nobody waits for it any more.
    pub(crate) fn is_gone(&self, now: Instant) -> bool {
        self.reply.is_closed() || self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

impl Lane {
    fn of(waiting: &Waiting, cores: Option<&Turnstile>) -> Lane {
        let share = &waiting.share;
        let weight = u64::from(share.weight.max(1));
        let (tenant, name) = (waiting.tenant.clone(), share.name.clone());
        let account = cores.map_or_else(Arc::default, |cores| cores.account(&tenant, &name));
        Lane { tenant, name, weight, time: 0, jobs: VecDeque::new(), rows: 0, account, calm: false }
    }

    fn is_of(&self, waiting: &Waiting) -> bool {
        same_text(&self.tenant, &waiting.tenant) && same_text(&self.name, &waiting.share.name)
    }

    /// Moves its next turn on by what was taken.
    fn charge(&mut self, rows: usize) {
        self.time = self.time.saturating_add((rows as u64).saturating_mul(ROW) / self.weight);
    }
}

impl Lanes {
    /// Of a graph whose runs share `cores`.
    pub fn new(cores: Option<Arc<Turnstile>>) -> Lanes {
        Lanes { cores, ..Lanes::default() }
    }

    /// Jobs that wait.
    pub fn jobs(&self) -> usize {
        self.jobs
    }

    /// Those of one model, of all tenants.
    pub fn of(&self, name: &str) -> usize {
        self.lanes.iter().filter(|lane| &*lane.name == name).map(|lane| lane.jobs.len()).sum()
    }

    /// Rows of all jobs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows that are served before a job that comes now: those of its own lane, and of each other lane as many as its
    /// weight allows in that time.
    pub fn rows_before(&self, waiting: &Waiting) -> usize {
        let own = self.lanes.iter().find(|lane| lane.is_of(waiting)).map_or(0, |lane| lane.rows);
        let weight = u64::from(waiting.share.weight.max(1));
        let others = self.lanes.iter().filter(|lane| !lane.is_of(waiting)).map(|lane| {
            let turns = (own as u64 + 1).saturating_mul(lane.weight).div_ceil(weight);
            lane.rows.min(usize::try_from(turns).unwrap_or(usize::MAX))
        });
        own + others.sum::<usize>()
    }

    /// Puts a job at the end of its caller's lane. True when the caller was idle and is within its share of the cores while
    /// others use some.
    pub fn push(&mut self, ticket: Ticket, waiting: Waiting) -> bool {
        let time = self.time;
        self.jobs += 1;
        self.rows += rows(&waiting);
        let at = match self.lanes.iter().position(|lane| lane.is_of(&waiting)) {
            Some(at) => at,
            None => {
                if self.lanes.len() >= KEPT {
                    self.lanes.retain(|lane| !lane.jobs.is_empty());
                }
                self.lanes.push(Lane::of(&waiting, self.cores.as_deref()));
                self.lanes.len() - 1
            }
        };
        let lane = &mut self.lanes[at];
        let returns = lane.jobs.is_empty();
        if returns {
            lane.time = lane.time.max(time);
            lane.calm = self.cores.as_ref().is_some_and(|cores| cores.returns(&lane.account));
        }
        lane.weight = u64::from(waiting.share.weight.max(1));
        lane.rows += rows(&waiting);
        lane.jobs.push_back((ticket, waiting));
        returns && lane.calm && self.cores.as_ref().is_some_and(|cores| cores.is_used())
    }

    /// Takes out the newest job of the caller with the most for its weight, if that is more than `waiting`'s caller would
    /// have with one more: a full queue is shared as the engine is.
    pub fn make_room(&mut self, waiting: &Waiting) -> Option<Waiting> {
        let own = self.lanes.iter().find(|lane| lane.is_of(waiting)).map_or(0, |lane| lane.jobs.len());
        let own = (own as u64 + 1).saturating_mul(ROW) / u64::from(waiting.share.weight.max(1));
        let load = |lane: &Lane| (lane.jobs.len() as u64).saturating_mul(ROW) / lane.weight;
        let longest = self.lanes.iter_mut().max_by_key(|lane| load(lane))?;
        if load(longest) <= own {
            return None;
        }
        let (_, evicted) = longest.jobs.pop_back()?;
        longest.rows -= rows(&evicted);
        self.jobs -= 1;
        self.rows -= rows(&evicted);
        Some(evicted)
    }

    /// Takes one job out, wherever it is.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Waiting> {
        let place = |lane: &Lane| lane.jobs.binary_search_by_key(&ticket.0, |(t, _)| t.0).ok();
        let (lane, at) = self.lanes.iter_mut().find_map(|lane| place(lane).map(|at| (lane, at)))?;
        let (_, waiting) = lane.jobs.remove(at)?;
        lane.rows -= rows(&waiting);
        self.jobs -= 1;
        self.rows -= rows(&waiting);
        Some(waiting)
    }

    /// Takes all jobs out.
    pub fn drain(&mut self) -> Vec<Waiting> {
        (self.jobs, self.rows) = (0, 0);
        let all = self.lanes.iter_mut().flat_map(|lane| {
            lane.rows = 0;
            lane.jobs.drain(..).map(|(_, waiting)| waiting)
        });
        all.collect()
    }

    /// The lane whose turn it is.
    pub fn next(&self) -> Option<usize> {
        let busy = self.lanes.iter().enumerate().filter(|(_, lane)| !lane.jobs.is_empty());
        busy.min_by_key(|(_, lane)| lane.time).map(|(at, _)| at)
    }

    /// As [`Lanes::next`], among those whose caller was idle and is within its share of the cores.
    pub fn next_calm(&self) -> Option<usize> {
        let calm = self.lanes.iter().enumerate().filter(|(_, lane)| !lane.jobs.is_empty() && self.is_calm(lane));
        calm.min_by_key(|(_, lane)| lane.time).map(|(at, _)| at)
    }

    /// Whose account a run of a lane's head goes on, and whether it may run beside others that have the cores.
    pub fn account(&self, lane: usize) -> Option<(Arc<Account>, bool)> {
        self.lanes.get(lane).map(|lane| (lane.account.clone(), self.is_calm(lane)))
    }

    fn is_calm(&self, lane: &Lane) -> bool {
        lane.calm && self.cores.as_ref().is_some_and(|cores| cores.is_behind(&lane.account))
    }

    /// The job at a lane's head.
    pub fn head(&self, lane: usize) -> Option<&Waiting> {
        self.lanes.get(lane)?.jobs.front().map(|(_, waiting)| waiting)
    }

    /// Rows that could run with the head of a lane, its own included, and no more than `most` of them.
    pub fn rows_with(&self, lane: usize, most: usize) -> usize {
        let (Some(first), Some(tenant)) = (self.head(lane), self.lanes.get(lane).map(|lane| &lane.tenant)) else {
            return 0;
        };
        let mut found = rows(first);
        let of_tenant = self.lanes.iter().filter(|lane| same_text(&lane.tenant, tenant));
        let jobs = of_tenant.flat_map(|lane| &lane.jobs).take(LOOKED_AT);
        for (_, waiting) in jobs.filter(|(_, waiting)| !std::ptr::eq(waiting, first)) {
            if found >= most {
                break;
            }
            if same_key(&first.job, &waiting.job, self.pads.as_deref()) {
                found += rows(waiting);
            }
        }
        found.min(most.max(rows(first)))
    }

    /// Moves the head of a lane into `batch`, and with it what has its key and fits into `most` rows, its own lane
    /// first, and then, where they may come along, `others` of its tenant. True when a job was left because it did not fit.
    pub fn gather(&mut self, lane: usize, most: usize, batch: &mut Batch, others: bool) -> bool {
        let Some(own) = self.lanes.get_mut(lane) else { return false };
        self.time = self.time.max(own.time);
        batch.pads.clone_from(&self.pads);
        let tenant = own.tenant.clone();
        let mut full = self.gather_from(lane, most, batch);
        for other in 0..self.lanes.len() {
            if batch.jobs.is_empty() || most <= 1 || !others {
                break;
            }
            if other != lane && same_text(&self.lanes[other].tenant, &tenant) {
                full |= self.gather_from(other, most, batch);
            }
        }
        full
    }

    fn gather_from(&mut self, lane: usize, most: usize, batch: &mut Batch) -> bool {
        let pads = batch.pads.clone();
        let Some(lane) = self.lanes.get_mut(lane) else { return false };
        let mut filled: usize = batch.jobs.iter().map(rows).sum();
        let (mut at, mut looked, mut full, before) = (0, 0, false, filled);
        while let Some((_, waiting)) = lane.jobs.get(at) {
            looked += 1;
            let (own, gone) = (rows(waiting), waiting.is_gone(batch.taken));
            let takes = match batch.jobs.first() {
                _ if gone => true,
                None => true,
                Some(first) if same_key(&first.job, &waiting.job, pads.as_deref()) => {
                    full |= filled + own > most;
                    filled + own <= most
                }
                Some(_) => false,
            };
            if takes {
                let Some((_, waiting)) = lane.jobs.remove(at) else { break };
                lane.rows -= own;
                self.jobs -= 1;
                self.rows -= own;
                if gone {
                    batch.gone.push(waiting);
                } else {
                    filled += own;
                    batch.jobs.push(waiting);
                }
            } else {
                at += 1;
            }
            if filled >= most || looked >= LOOKED_AT {
                full |= filled >= most;
                break;
            }
        }
        if filled > before {
            lane.charge(filled - before);
            // What it left behind did not come when nothing waited.
            lane.calm = false;
            let (account, weight) = (lane.account.clone(), u32::try_from(lane.weight).unwrap_or(u32::MAX));
            batch.charges.push(Charge { account, rows: filled - before, weight });
        }
        full
    }
}
