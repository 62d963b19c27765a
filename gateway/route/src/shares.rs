//! Which tenants a replica has refused for having their share of it, and until when.

use std::sync::Arc;

use crate::time::Nanos;

/// Tenants that are remembered of one replica.
const MOST: usize = 128;

/// The tenants that a replica said it has no room for. Others are not concerned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shares {
    refused: Vec<(Arc<str>, Nanos)>,
}

impl Shares {
    /// A tenant was refused until then. What was said last holds. Of more than can be kept, what ends first is forgotten.
    pub(crate) fn refuse(&mut self, tenant: &Arc<str>, until: Nanos) {
        self.admit(tenant);
        if self.refused.len() >= MOST {
            let first = self.refused.iter().enumerate().min_by_key(|(_, (_, until))| *until).map(|(at, _)| at);
            first.map(|at| self.refused.swap_remove(at));
        }
        self.refused.push((tenant.clone(), until));
    }

    /// One of a tenant's requests is done: its place is free.
    pub(crate) fn admit(&mut self, tenant: &str) {
        self.refused.retain(|(other, _)| **other != *tenant);
    }

    /// Until when a tenant's requests are refused, if they are.
    pub(crate) fn until(&self, tenant: &str, now: Nanos) -> Option<Nanos> {
        self.refused.iter().find(|(other, until)| **other == *tenant && now < *until).map(|(_, until)| *until)
    }

    /// Forgets what is over.
    pub(crate) fn settle(&mut self, now: Nanos) {
        self.refused.retain(|(_, until)| now < *until);
    }

    /// Whether nobody is refused.
    pub(crate) fn is_empty(&self) -> bool {
        self.refused.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_refused_until_then_and_no_other_is() {
        let mut shares = Shares::default();
        shares.refuse(&"acme".into(), 50);
        assert_eq!(
            (shares.until("acme", 49), shares.until("acme", 50), shares.until("other", 0)),
            (Some(50), None, None)
        );
        shares.refuse(&"acme".into(), 30);
        assert_eq!(shares.until("acme", 0), Some(30), "what was said last");
        shares.admit("acme");
        assert!(shares.is_empty());
        shares.refuse(&"acme".into(), 50);
        shares.settle(50);
        assert!(shares.is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut shares = Shares::default();
        for at in 0..10 * MOST as u64 {
            shares.refuse(&at.to_string().into(), 1_000 + at);
        }
        assert_eq!(shares.refused.len(), MOST);
        assert!(shares.until("0", 0).is_none() && shares.until(&(10 * MOST - 1).to_string(), 0).is_some());
    }
}
