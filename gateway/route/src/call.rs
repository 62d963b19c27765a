//! A request, as far as choosing and trying again need to know it.

use std::sync::Arc;

use crate::law::Rules;
use crate::time::Nanos;

/// Where a hedge may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Hedging {
    /// Nowhere.
    Never,
    /// To replicas that can withdraw a job.
    #[default]
    Withdrawable,
    /// Anywhere.
    Anywhere,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    /// Every rule that binds it.
    pub rules: Arc<Rules>,
    /// When the client stops waiting.
    pub deadline: Nanos,
    /// Whether it may run more than once: the module was granted nothing that acts outside.
    pub repeatable: bool,
    /// Whether its whole body is kept, so that it can be sent again.
    pub replayable: bool,
    /// Where a hedge may go. Only requests that are repeatable and replayable are hedged.
    pub hedging: Hedging,
    /// Whether only a verified digest will do.
    pub verified: bool,
    /// Whether it came from another gateway and must be answered here.
    pub forwarded: bool,
    /// What it is called, and whose it is, for those who look at decisions later.
    pub request: Option<Arc<str>>,
    pub tenant: Option<Arc<str>>,
}

impl Call {
    /// A request with defaults: bound by nothing, repeatable, with its body kept.
    pub fn until(deadline: Nanos) -> Call {
        Call {
            rules: Arc::new(Rules::none()),
            deadline,
            repeatable: true,
            replayable: true,
            hedging: Hedging::default(),
            verified: false,
            forwarded: false,
            request: None,
            tenant: None,
        }
    }

    /// Whether what was sent may be sent again.
    pub(crate) fn again(&self) -> bool {
        self.repeatable && self.replayable
    }
}
