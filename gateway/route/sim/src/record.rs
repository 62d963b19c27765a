//! What came of the requests.

use windrose_route::{MILLISECOND, Nanos, Reason};

/// One request's end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// When it came in.
    pub at: Nanos,
    /// How long the client waited.
    pub took: Nanos,
    /// Why there was no answer, if there was none.
    pub failed: Option<Reason>,
    /// The index of the site that answered.
    pub site: Option<usize>,
    /// How many attempts were sent.
    pub attempts: u8,
    /// The answer was wrong.
    pub wrong: bool,
    /// It could be sent again.
    pub repeatable: bool,
    /// Retries and hedges that the budgets still allowed when it ended.
    pub budgets: (f64, f64),
}

/// Everything that a run found.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Every request that ended, in the order of ending.
    pub outcomes: Vec<Outcome>,
    /// Requests that came in.
    pub asked: u64,
    /// Attempts that were sent.
    pub sent: u64,
    /// Inferences that ran at the sites for these requests, wasted ones included.
    pub executed: u64,
    /// Payloads that arrived where a rule forbids it.
    pub forbidden: u64,
    /// Second answers, and answers after a failure.
    pub twice: u64,
    /// Ejections: when, the index of the site, and whether it was only taken out for wrong answers.
    pub ejections: Vec<(Nanos, usize, bool)>,
    /// Steps of the machine that had to choose, and what they took in real time, where that is measured.
    pub choices: (u64, std::time::Duration),
}

impl Record {
    /// The quantile `q` of the latencies of answered requests that came in within `from..to`; 0 when there were none.
    pub fn quantile(&self, q: f64, from: Nanos, to: Nanos) -> Nanos {
        let within = self.outcomes.iter().filter(|one| one.failed.is_none() && (from..to).contains(&one.at));
        let mut took: Vec<Nanos> = within.map(|one| one.took).collect();
        let Some(last) = took.len().checked_sub(1) else { return 0 };
        let index = ((last as f64) * q).ceil() as usize;
        *took.select_nth_unstable(index.min(last)).1
    }

    /// The mean of the latencies of answered requests that came in within `from..to`, in ns; 0 when there were none.
    pub fn mean(&self, from: Nanos, to: Nanos) -> f64 {
        let within = self.outcomes.iter().filter(|one| one.failed.is_none() && (from..to).contains(&one.at));
        let (sum, count) = within.fold((0.0, 0u64), |(sum, count), one| (sum + one.took as f64, count + 1));
        sum / count.max(1) as f64
    }

    /// How many requests had no answer.
    pub fn failures(&self) -> usize {
        self.outcomes.iter().filter(|one| one.failed.is_some()).count()
    }

    /// Executed work beyond one inference for each request, as a share.
    pub fn extra_work(&self) -> f64 {
        let answered = self.outcomes.iter().filter(|one| one.failed.is_none()).count();
        (self.executed as f64 - answered as f64) / answered.max(1) as f64
    }

    /// One line: failures, and the quantiles in milliseconds.
    pub fn summary(&self, from: Nanos, to: Nanos) -> String {
        let ms = |q| self.quantile(q, from, to) as f64 / MILLISECOND as f64;
        format!(
            "mean {:6.1}  p50 {:6.1}  p99 {:6.1}  p99.9 {:6.1}  max {:6.1} ms  failed {}  attempts/request {:.3}",
            self.mean(from, to) / MILLISECOND as f64,
            ms(0.5),
            ms(0.99),
            ms(0.999),
            ms(1.0),
            self.failures(),
            self.sent as f64 / self.asked.max(1) as f64
        )
    }
}
