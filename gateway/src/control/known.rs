//! What was prepared before. The same content under the same settings survives again, so that deploying it as another
//! version costs no child process: only what is new is compiled, loaded and tested outside first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::manifest::Manifest;
use super::prepare::Prepared;
use super::store::hex_digest;

/// Preparations that are remembered; the oldest leaves first.
const MOST: usize = 1_024;

/// Preparations that survived in this process, whose settings do not change while it runs.
#[derive(Default)]
pub struct Known(Mutex<Table>);

#[derive(Default)]
struct Table {
    by_content: HashMap<String, Prepared>,
    /// Their keys, the oldest first.
    order: VecDeque<String>,
}

impl Known {
    /// What a child said about the same content.
    pub fn get(&self, manifest: &Manifest) -> Option<Prepared> {
        self.lock().by_content.get(&key(manifest)).cloned()
    }

    /// Remembers what survived; not where time ran out while its graphs were tried: the machine may have been busy.
    pub fn insert(&self, manifest: &Manifest, prepared: &Prepared) {
        if prepared.graphs.values().any(|graph| graph.batching.cut_short) {
            return;
        }
        // Nothing was done when it is next asked for.
        let prepared = Prepared { timings_ms: Default::default(), ..prepared.clone() };
        let (key, mut table) = (key(manifest), self.lock());
        if table.by_content.insert(key.clone(), prepared).is_none() {
            table.order.push_back(key);
        }
        if table.order.len() > MOST
            && let Some(oldest) = table.order.pop_front()
        {
            table.by_content.remove(&oldest);
        }
    }

    /// Nothing panics under the lock, so a poisoned one is as good.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names everything that a preparation depends on: the whole manifest but for what it is called.
fn key(manifest: &Manifest) -> String {
    let nameless =
        Manifest { name: String::new(), version: String::new(), description: String::new(), ..manifest.clone() };
    hex_digest(&nameless.to_json())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, graph: u32) -> Manifest {
        let digest = format!("{graph:064x}");
        let text = format!(r#"{{"name": "{name}", "version": "1", "graphs": {{"model": {{"digest": "{digest}"}}}}}}"#);
        Manifest::from_json(text.as_bytes()).unwrap()
    }

    fn prepared() -> Prepared {
        serde_json::from_value(serde_json::json!({
            "module_digest": "", "kind": "model", "imports": [], "signature": null, "graphs": {},
            "timings_ms": {"total": 7}, "warnings": ["a warning"],
        }))
        .unwrap()
    }

    #[test]
    fn content_is_known_by_any_name_and_other_content_is_not() {
        let known = Known::default();
        known.insert(&manifest("a", 1), &prepared());
        let again = known.get(&manifest("b", 1)).unwrap();
        assert_eq!((again.warnings.len(), again.timings_ms.len()), (1, 0));
        assert!(known.get(&manifest("a", 2)).is_none());
        let mut limited = manifest("a", 1);
        limited.limits.memory = Some(1 << 20);
        assert!(known.get(&limited).is_none(), "whatever may change how a preparation ends is content");
    }

    #[test]
    fn what_time_was_too_short_for_is_not_known() {
        let known = Known::default();
        let with = |cut_short: bool| Prepared {
            graphs: serde_json::from_value(serde_json::json!({"model": {
                "info": {"engine": "rten", "version": "1", "provider": "CPU", "sessions": 1, "threads": 1,
                         "isolation": "process"},
                "spec": {"inputs": [], "outputs": []},
                "batching": {"refused": "why", "curve": [], "cut_short": cut_short},
            }}))
            .unwrap(),
            ..prepared()
        };
        known.insert(&manifest("a", 1), &with(true));
        assert!(known.get(&manifest("a", 1)).is_none());
        known.insert(&manifest("a", 1), &with(false));
        assert!(known.get(&manifest("a", 1)).is_some());
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let known = Known::default();
        for graph in 0..=MOST as u32 {
            known.insert(&manifest("a", graph), &prepared());
        }
        known.insert(&manifest("a", 5), &prepared());
        assert!(known.get(&manifest("a", 0)).is_none());
        assert!(known.get(&manifest("a", 1)).is_some());
        assert_eq!(known.lock().order.len(), MOST);
    }
}
