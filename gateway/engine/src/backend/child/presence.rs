//! Which sessions' runs are in a graph's child, and what the child's end says of each.
//!
//! When a child ends by itself, any of the runs that are in it may have done that. Each of them is run once more, with
//! nobody else in the child: who ends it then has done it before, and the others get their answers.

use std::collections::{BTreeMap, BTreeSet};

use crate::EngineError;

/// What comes of a run whose child has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It ended the child.
    Guilty(EngineError),
    /// It may have: it is run again with nobody else in the child.
    Suspect,
    /// The child was ended for another's run.
    Innocent,
}

/// Sessions by their numbers.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// Those whose runs are in the child.
    inside: BTreeSet<usize>,
    /// Those whose runs are to be alone there, or are: until they are done nobody else enters.
    apart: BTreeSet<usize>,
    /// What came of runs whose child has ended, until their sessions ask.
    fates: BTreeMap<usize, Fate>,
    /// Whether a run was in this child.
    used: bool,
}

impl Presence {
    /// Enters the child, if it is the session's turn: alone, or beside others.
    pub fn enter(&mut self, session: usize, alone: bool) -> bool {
        if alone {
            self.apart.insert(session);
        }
        let may = if alone { self.inside.is_empty() } else { self.apart.is_empty() };
        if may {
            self.inside.insert(session);
            self.used = true;
        }
        may
    }

    /// A session's run is over, or given up. Whether others may enter now that could not before.
    pub fn leave(&mut self, session: usize) -> bool {
        self.fates.remove(&session);
        let (left, was_apart) = (self.inside.remove(&session), self.apart.remove(&session));
        was_apart || (left && !self.apart.is_empty())
    }

    /// The child has ended, for the run of one session or by itself. Returns whether any run was in it.
    pub fn judge(&mut self, why: &EngineError, named: Option<usize>) -> bool {
        let inside = std::mem::take(&mut self.inside);
        let alone = inside.len() == 1;
        for session in inside {
            let fate = match named {
                Some(guilty) if guilty != session => Fate::Innocent,
                None if !alone => {
                    // From now on: nobody is to come before it into the next child.
                    self.apart.insert(session);
                    Fate::Suspect
                }
                _ => Fate::Guilty(why.clone()),
            };
            self.fates.insert(session, fate);
        }
        std::mem::take(&mut self.used)
    }

    /// What came of a session's run; `None` when it was not in the child that ended.
    pub fn fate(&mut self, session: usize) -> Option<Fate> {
        self.fates.remove(&session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crashed() -> EngineError {
        EngineError::Crashed("was ended".into())
    }

    #[test]
    fn who_was_alone_has_done_it() {
        let mut presence = Presence::default();
        assert!(presence.enter(3, false) && presence.enter(4, false));
        assert!(!presence.leave(4), "nobody waits for that");
        assert!(presence.judge(&crashed(), None));
        assert_eq!((presence.fate(3), presence.fate(4)), (Some(Fate::Guilty(crashed())), None));
        assert!(!presence.judge(&crashed(), None), "nobody was in the next child");
    }

    #[test]
    fn of_several_each_is_tried_alone() {
        let mut presence = Presence::default();
        assert!([0, 1, 2].into_iter().all(|session| presence.enter(session, false)));
        presence.judge(&crashed(), None);
        assert!([0, 1, 2].into_iter().all(|session| presence.fate(session) == Some(Fate::Suspect)));
        assert!(!presence.enter(3, false), "those who may have done it come first");
        assert!(presence.enter(1, true) && !presence.enter(0, true) && !presence.enter(2, true));
        presence.judge(&crashed(), None);
        assert_eq!(presence.fate(1), Some(Fate::Guilty(crashed())));
        assert!(presence.leave(1) && presence.enter(0, true) && !presence.enter(3, false));
        assert!(presence.leave(0) && presence.enter(2, true) && presence.leave(2));
        assert!(presence.enter(3, false) && presence.enter(0, false));
    }

    #[test]
    fn an_end_for_one_run_says_nothing_of_the_others() {
        let mut presence = Presence::default();
        assert!(presence.enter(0, false) && presence.enter(1, false));
        presence.judge(&EngineError::TimeLimit, Some(0));
        assert_eq!(presence.fate(1), Some(Fate::Innocent));
        assert_eq!(presence.fate(0), Some(Fate::Guilty(EngineError::TimeLimit)));
        assert!(presence.enter(1, false), "nobody is kept out");
    }

    #[test]
    fn who_is_to_be_alone_waits_until_the_others_are_done() {
        let mut presence = Presence::default();
        assert!(presence.enter(0, false) && !presence.enter(1, true));
        assert!(!presence.enter(2, false), "and lets nobody else in meanwhile");
        assert!(presence.leave(0) && presence.enter(1, true));
        assert!(presence.leave(1) && presence.enter(2, false));
    }
}
