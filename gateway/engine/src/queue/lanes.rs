//! Waiting jobs by who asked for them, and whose turn it is.
//!
//! Each caller, a tenant in the name of one model, has a lane. Tenants are served in the order of a virtual time that
//! advances with the rows that were taken from them, and the lanes of a tenant in that of one that advances with their own
//! rows, divided by their weight (hierarchical start-time fair queueing): a caller that floods its lane waits behind itself,
//! and a tenant with many models behind all of them. Who was idle starts at the present, and saves nothing up.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::{Ticket, Waiting};
use crate::BatchPolicy;
use crate::batch::{Batch, Charge, same_key};
use crate::turnstile::{Account, Turnstile};
use crate::user::User;

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
    tenants: Vec<Arc<Group>>,
    /// The present: the virtual time of tenants at which the last turn began.
    time: u64,
    jobs: usize,
    rows: usize,
    /// The cores that runs share with other graphs'; `None` where they use none.
    cores: Option<Arc<Turnstile>>,
}

/// The lanes of one tenant. Its lanes hold it and change it, all of them under the queue's lock.
#[derive(Debug)]
struct Group {
    tenant: Arc<str>,
    /// When its next turn begins.
    time: AtomicU64,
    /// Its present: the virtual time of its lanes at which its last turn began.
    now: AtomicU64,
    /// Of its waiting jobs.
    rows: AtomicUsize,
}

#[derive(Debug)]
struct Lane {
    group: Arc<Group>,
    name: Arc<str>,
    user: Arc<User>,
    weight: u64,
    /// When its next turn begins, in its tenant's time.
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
    fn is_of(&self, waiting: &Waiting) -> bool {
        Arc::ptr_eq(&self.user, &waiting.user)
            && same_text(&self.group.tenant, &waiting.tenant)
            && same_text(&self.name, &waiting.share.name)
    }

    /// Whether jobs of another lane may run with those of this one.
    fn takes_along(&self, other: &Lane) -> bool {
        Arc::ptr_eq(&self.group, &other.group) && self.user.mixes_with(&other.user)
    }

    fn push(&mut self, ticket: Ticket, waiting: Waiting) {
        let rows = rows(&waiting);
        self.rows += rows;
        self.group.rows.fetch_add(rows, Relaxed);
        self.jobs.push_back((ticket, waiting));
    }

    fn remove(&mut self, at: usize) -> Option<Waiting> {
        let (_, waiting) = self.jobs.remove(at)?;
        let rows = rows(&waiting);
        self.rows -= rows;
        self.group.rows.fetch_sub(rows, Relaxed);
        Some(waiting)
    }

    /// Whose turn it is first.
    fn turn(&self) -> (u64, u64) {
        (self.group.time.load(Relaxed), self.time)
    }

    /// Moves its next turn on by what was taken, and its tenant's.
    fn charge(&mut self, rows: usize) {
        let cost = (rows as u64).saturating_mul(ROW);
        self.time = self.time.saturating_add(cost / self.weight);
        self.group.time.fetch_add(cost, Relaxed);
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

    /// Those of one user of the graph.
    pub fn jobs_of(&self, user: &Arc<User>) -> usize {
        self.lanes.iter().filter(|lane| Arc::ptr_eq(&lane.user, user)).map(|lane| lane.jobs.len()).sum()
    }

    /// How a lane's jobs are gathered.
    pub fn policy(&self, lane: usize) -> BatchPolicy {
        self.lanes.get(lane).map_or(BatchPolicy::OFF, |lane| lane.user.policy())
    }

    /// Rows of all jobs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows that are served before a job that comes now: those of its own lane, of each other lane of its tenant as many as
    /// its weight allows in that time, and of each other tenant as many as of its own.
    pub fn rows_before(&self, waiting: &Waiting) -> usize {
        let own = self.lanes.iter().find(|lane| lane.is_of(waiting)).map_or(0, |lane| lane.rows);
        let weight = u64::from(waiting.share.weight.max(1));
        let (group, mut before) = (self.group(&waiting.tenant), own);
        for lane in &self.lanes {
            if group.is_some_and(|group| Arc::ptr_eq(group, &lane.group)) && !lane.is_of(waiting) {
                let turns = (own as u64 + 1).saturating_mul(lane.weight).div_ceil(weight);
                before += lane.rows.min(usize::try_from(turns).unwrap_or(usize::MAX));
            }
        }
        let others = self.tenants.iter().filter(|other| group.is_none_or(|group| !Arc::ptr_eq(group, other)));
        before + others.map(|other| other.rows.load(Relaxed).min(before + 1)).sum::<usize>()
    }

    fn group(&self, tenant: &Arc<str>) -> Option<&Arc<Group>> {
        self.tenants.iter().find(|group| same_text(&group.tenant, tenant))
    }

    /// The lane of a caller, which is made where there is none.
    fn lane_of(&mut self, waiting: &Waiting) -> usize {
        if let Some(at) = self.lanes.iter().position(|lane| lane.is_of(waiting)) {
            return at;
        }
        if self.lanes.len() >= KEPT {
            self.lanes.retain(|lane| !lane.jobs.is_empty());
            self.tenants.retain(|group| Arc::strong_count(group) > 1);
        }
        let (tenant, name) = (&waiting.tenant, waiting.share.name.clone());
        let group = self.group(tenant).cloned().unwrap_or_else(|| {
            let [time, now] = [const { AtomicU64::new(0) }; 2];
            let group = Arc::new(Group { tenant: tenant.clone(), time, now, rows: AtomicUsize::new(0) });
            self.tenants.push(group.clone());
            group
        });
        let account = self.cores.as_ref().map_or_else(Arc::default, |cores| cores.account(tenant, &name));
        let (weight, jobs) = (u64::from(waiting.share.weight.max(1)), VecDeque::new());
        let user = waiting.user.clone();
        self.lanes.push(Lane { group, name, user, weight, time: 0, jobs, rows: 0, account, calm: false });
        self.lanes.len() - 1
    }

    /// Puts a job at the end of its caller's lane. Says whether it is the first there, and whether its caller was idle and is
    /// within its share of the cores while others use some.
    pub fn push(&mut self, ticket: Ticket, waiting: Waiting) -> (bool, bool) {
        self.jobs += 1;
        self.rows += rows(&waiting);
        let at = self.lane_of(&waiting);
        let lane = &mut self.lanes[at];
        let returns = lane.jobs.is_empty();
        if returns {
            lane.group.time.fetch_max(self.time, Relaxed);
            lane.time = lane.time.max(lane.group.now.load(Relaxed));
            lane.calm = self.cores.as_ref().is_some_and(|cores| cores.returns(&lane.account));
        }
        lane.weight = u64::from(waiting.share.weight.max(1));
        lane.push(ticket, waiting);
        (returns, returns && lane.calm && self.cores.as_ref().is_some_and(|cores| cores.is_used()))
    }

    /// Takes out the newest of a user's jobs, of the tenant with the most of them or of `waiting`'s own tenant's caller with
    /// the most for its weight, if that is more than `waiting`'s would have with one more: a full queue is shared as the
    /// engine is.
    pub fn make_room(&mut self, waiting: &Waiting) -> Option<Waiting> {
        let load = |lane: &Lane| (lane.jobs.len() as u64).saturating_mul(ROW) / lane.weight;
        let is_users = |lane: &Lane| Arc::ptr_eq(&lane.user, &waiting.user);
        let mut jobs: HashMap<*const Group, usize> = HashMap::new();
        for lane in self.lanes.iter().filter(|lane| is_users(lane)) {
            *jobs.entry(Arc::as_ptr(&lane.group)).or_default() += lane.jobs.len();
        }
        let own = self.group(&waiting.tenant).map(Arc::as_ptr);
        let own_jobs = own.and_then(|own| jobs.get(&own)).copied().unwrap_or(0);
        // Of several that have as many it is any.
        let (most, most_jobs) = jobs.into_iter().max_by_key(|(_, jobs)| *jobs)?;
        let (from, least) = if most_jobs > own_jobs + 1 {
            (most, 0)
        } else {
            let lane = self.lanes.iter().find(|lane| lane.is_of(waiting)).map_or(0, |lane| lane.jobs.len());
            (own?, (lane as u64 + 1).saturating_mul(ROW) / u64::from(waiting.share.weight.max(1)))
        };
        let lanes = self.lanes.iter_mut().filter(|lane| Arc::as_ptr(&lane.group) == from && is_users(lane));
        let longest = lanes.max_by_key(|lane| load(lane))?;
        if load(longest) <= least {
            return None;
        }
        let evicted = longest.remove(longest.jobs.len().checked_sub(1)?)?;
        self.jobs -= 1;
        self.rows -= rows(&evicted);
        Some(evicted)
    }

    /// Takes one job out, wherever it is.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Waiting> {
        let place = |lane: &Lane| lane.jobs.binary_search_by_key(&ticket.0, |(t, _)| t.0).ok();
        let (lane, at) = self.lanes.iter_mut().find_map(|lane| place(lane).map(|at| (lane, at)))?;
        let waiting = lane.remove(at)?;
        self.jobs -= 1;
        self.rows -= rows(&waiting);
        Some(waiting)
    }

    /// Takes all jobs out.
    pub fn drain(&mut self) -> Vec<Waiting> {
        (self.jobs, self.rows) = (0, 0);
        self.lanes.iter_mut().flat_map(|lane| std::iter::from_fn(|| lane.remove(0))).collect()
    }

    /// The lanes with jobs.
    pub fn busy(&self) -> impl Iterator<Item = usize> {
        self.lanes.iter().enumerate().filter(|(_, lane)| !lane.jobs.is_empty()).map(|(at, _)| at)
    }

    /// The lane whose turn it is, among those that are `ready`.
    pub fn next(&self, ready: impl Fn(usize) -> bool) -> Option<usize> {
        let mut turn: Option<usize> = None;
        for lane in self.busy() {
            // What is ready takes longer to tell than whose turn is earlier.
            if turn.is_none_or(|turn| self.lanes[lane].turn() < self.lanes[turn].turn()) && ready(lane) {
                turn = Some(lane);
            }
        }
        turn
    }

    /// As [`Lanes::next`], among those whose caller was idle and is within its share of the cores.
    pub fn next_calm(&self, ready: impl Fn(usize) -> bool) -> Option<usize> {
        self.next(|lane| self.is_calm(&self.lanes[lane]) && ready(lane))
    }

    /// Whose account a run of a lane's head goes on, and whether it may run beside others that have the cores.
    pub fn account(&self, lane: usize) -> Option<(Arc<Account>, bool)> {
        self.lanes.get(lane).map(|lane| (lane.account.clone(), self.is_calm(lane)))
    }

    /// Whether a lane's head may run beside others, and has to: they have all cores.
    pub fn is_pressed(&self, lane: usize) -> bool {
        self.cores.as_ref().is_some_and(|cores| cores.is_full())
            && self.lanes.get(lane).is_some_and(|lane| self.is_calm(lane))
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
        let (Some(first), Some(own)) = (self.head(lane), self.lanes.get(lane)) else { return 0 };
        let mut found = rows(first);
        let pads = own.user.pads().map(|pads| &**pads);
        let with = self.lanes.iter().filter(|lane| own.takes_along(lane));
        let jobs = with.flat_map(|lane| &lane.jobs).take(LOOKED_AT);
        for (_, waiting) in jobs.filter(|(_, waiting)| !std::ptr::eq(waiting, first)) {
            if found >= most {
                break;
            }
            let fits = Arc::ptr_eq(&waiting.user, &own.user) || found + rows(waiting) <= waiting.user.policy().max_rows;
            if fits && same_key(&first.job, &waiting.job, pads) {
                found += rows(waiting);
            }
        }
        found.min(most.max(rows(first)))
    }

    /// Moves the head of a lane into `batch`, and with it what has its key and fits into `most` rows, its own lane
    /// first, and then, where they may come along, `others` of its tenant, whose own users may want smaller batches. True
    /// when a job was left because it did not fit.
    pub fn gather(&mut self, lane: usize, mut most: usize, batch: &mut Batch, others: bool) -> bool {
        let Some(own) = self.lanes.get(lane) else { return false };
        let (of_tenant, of_lane) = own.turn();
        self.time = self.time.max(of_tenant);
        own.group.now.fetch_max(of_lane, Relaxed);
        batch.pads = own.user.pads().cloned();
        let mut full = self.gather_from(lane, most, batch);
        for other in 0..self.lanes.len() {
            if batch.jobs.is_empty() || most <= 1 || !others {
                break;
            }
            if other == lane || !self.lanes[lane].takes_along(&self.lanes[other]) {
                continue;
            }
            let (jobs, room) = (batch.jobs.len(), most.min(self.policy(other).max_rows));
            let filled = self.gather_from(other, room, batch);
            if batch.jobs.len() > jobs {
                most = room;
            }
            full |= filled && room == most;
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
                let Some(waiting) = lane.remove(at) else { break };
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
