//! What a gateway serves, as it tells its peers: versions of models, and what exactly runs under each name.

use std::collections::BTreeMap;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use windrose_engine::{DataType, GraphSpec, TensorSpec};
use windrose_route::{Digest, Grants, Load};
use windrose_sandbox::ModuleKind;

use crate::control::manifest::{Jurisdictions, SelfTest};
use crate::control::store::hex;
use crate::snapshot::{Served, Snapshot, Unready};

/// A grant of hosts to reach: what runs with it acts outside.
const NETWORK: u64 = 1;
/// A grant to load graphs that the module brings.
const LOAD: u64 = 2;
/// A grant of every host that the module asks for.
const ALL_HOSTS: u64 = 4;

const MODEL: HeaderName = HeaderName::from_static("windrose-model");
const VERSION: HeaderName = HeaderName::from_static("windrose-version");
const MODULE: HeaderName = HeaderName::from_static("windrose-module");
const GRAPHS: HeaderName = HeaderName::from_static("windrose-graphs");
const ENGINE: HeaderName = HeaderName::from_static("windrose-engine");

/// Everything that a gateway serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Catalog {
    /// Of the content: another number means another content, and gateways of one site that serve the same have the same.
    pub generation: u64,
    /// Whether the gateway is about to stop. It serves nothing more, and speaks for no other gateway of its site.
    #[serde(default)]
    pub leaving: bool,
    /// What is ready.
    pub ready: Vec<Offer>,
    /// What is deployed and not ready.
    #[serde(default)]
    pub unready: Vec<Unoffered>,
}

/// One version of a model that is deployed and does not answer: its law binds all the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unoffered {
    pub model: String,
    pub version: String,
    /// The law of its manifest.
    pub jurisdictions: Jurisdictions,
}

/// One version of a model that is ready.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    pub model: String,
    pub version: String,
    /// What runs; the digest is that of these.
    pub parts: Parts,
    /// Whether it takes inferences; else it is called under its own path.
    infers: bool,
    /// Whether it takes or gives FP16 or BF16, for which the protocol has no JSON: its golden test is for the self-test
    /// alone.
    #[serde(default)]
    halves: bool,
    /// The engines of its graphs.
    pub engine: String,
    /// What it was granted there of what its manifest asks for.
    granted: u64,
    /// The law of its manifest.
    #[serde(default)]
    pub jurisdictions: Jurisdictions,
    /// Deadline of a request that names none, and the longest, milliseconds.
    timeout_ms: (u64, u64),
}

/// What decides which answers a version gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parts {
    /// sha256 of the module.
    module: String,
    /// sha256 of each graph.
    graphs: BTreeMap<String, String>,
    /// sha256 of each asset.
    assets: BTreeMap<String, String>,
    /// sha256 of arguments and environment.
    command: String,
    /// What the module asks for, as bits, and sha256 of it; `None` where it asks for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asks: Option<(u64, String)>,
    /// The golden request and answer.
    test: Option<SelfTest>,
}

/// What every answer says about who gave it.
#[derive(Clone, Debug)]
pub struct Facts {
    headers: Vec<(HeaderName, HeaderValue)>,
    /// What nothing is said about.
    silent: Vec<HeaderName>,
}

impl Catalog {
    /// The catalogue of what is ready and of what is not.
    pub fn of(ready: Vec<Offer>, unready: Vec<Unoffered>) -> Catalog {
        let text = serde_json::to_vec(&(&ready, &unready)).unwrap_or_default();
        let mut first = [0; 8];
        first.copy_from_slice(&Sha256::digest(&text)[..8]);
        Catalog { generation: u64::from_le_bytes(first), leaving: false, ready, unready }
    }

    /// The catalogue of a snapshot, under this ceiling of grants.
    pub fn of_snapshot(snapshot: &Snapshot, ceiling: &windrose_sandbox::Grants) -> Catalog {
        Catalog::of(Offer::all(snapshot, ceiling), Unoffered::all(snapshot))
    }

    /// What a peer says, as far as it can be. A version of which it claims what no gateway could grant is taken for one
    /// that does not answer: its law binds all the same.
    pub fn read(text: &[u8]) -> Option<Catalog> {
        let mut catalog: Catalog = serde_json::from_slice(text).ok()?;
        let (ready, doubtful): (Vec<Offer>, Vec<Offer>) =
            std::mem::take(&mut catalog.ready).into_iter().partition(Offer::can_be);
        catalog.ready = ready;
        for Offer { model, version, jurisdictions, .. } in doubtful {
            tracing::warn!(model, version, "a peer claims grants that the module does not ask for: it is not used");
            catalog.unready.push(Unoffered { model, version, jurisdictions });
        }
        Some(catalog)
    }

    /// What a gateway says last.
    pub fn of_leaving() -> Catalog {
        Catalog { leaving: true, ..Catalog::of(Vec::new(), Vec::new()) }
    }
}

impl Unoffered {
    /// Everything in a snapshot that is not ready, always in the same order.
    fn all(snapshot: &Snapshot) -> Vec<Unoffered> {
        let unoffered = |(model, unready): (&str, &Unready)| Unoffered {
            model: model.to_owned(),
            version: unready.version.clone(),
            jurisdictions: unready.jurisdictions.clone(),
        };
        let mut all: Vec<Unoffered> = snapshot.all_unready().map(unoffered).collect();
        all.sort_unstable();
        all
    }
}

impl Parts {
    /// The one digest of all.
    pub fn digest(&self) -> Digest {
        let text = serde_json::to_vec(self).unwrap_or_default();
        let mut hash = Sha256::new_with_prefix(b"windrose-model-1\n");
        hash.update(&text);
        hash.finalize().into()
    }
}

impl Offer {
    /// What is offered of a version that is served under this ceiling of grants.
    pub fn of(served: &Served, ceiling: &windrose_sandbox::Grants) -> Offer {
        let manifest = &served.manifest;
        let sha256 = |text: Result<Vec<u8>, serde_json::Error>| hex(&Sha256::digest(text.unwrap_or_default()));
        let asks = granted(&manifest.grants, &manifest.grants);
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let mut engines: Vec<_> = served.graphs.iter().map(|(_, graph)| graph.info().engine.as_str()).collect();
        engines.sort_unstable();
        engines.dedup();
        Offer {
            model: manifest.name.clone(),
            version: manifest.version.clone(),
            parts: Parts {
                module: served.module_digest.clone(),
                graphs: manifest.graphs.iter().map(|(name, graph)| (name.clone(), graph.digest.clone())).collect(),
                assets: manifest.assets.clone(),
                command: sha256(serde_json::to_vec(&manifest.command)),
                asks: (asks != 0).then(|| (asks, sha256(serde_json::to_vec(&manifest.grants)))),
                test: manifest.test.clone(),
            },
            infers: served.kind == ModuleKind::Model,
            halves: served.signature.as_ref().is_some_and(has_halves),
            engine: engines.join(","),
            granted: granted(&manifest.grants, ceiling),
            jurisdictions: manifest.jurisdictions.clone(),
            timeout_ms: (millis(served.default_timeout), millis(served.max_timeout)),
        }
    }

    /// Everything in a snapshot that is ready, always in the same order.
    fn all(snapshot: &Snapshot, ceiling: &windrose_sandbox::Grants) -> Vec<Offer> {
        let mut all: Vec<Offer> = snapshot
            .models()
            .flat_map(|(_, versions)| versions.iter())
            .map(|served| Offer::of(served, ceiling))
            .collect();
        all.sort_by(|a, b| (&a.model, &a.version).cmp(&(&b.model, &b.version)));
        all
    }

    /// The golden test that can be sent to any of its replicas. One without an output says whether they answer.
    pub fn golden(&self) -> Option<&SelfTest> {
        self.parts.test.as_ref().filter(|_| self.infers && !self.halves)
    }

    /// Whether its module can have been granted what it is said to have been: what it asks for, and what is known here.
    /// The digest is of what it asks for as well, so that no site can claim more for a module than others know of it.
    fn can_be(&self) -> bool {
        let asks = self.parts.asks.as_ref().map_or(0, |(asks, _)| *asks);
        self.granted & !(asks & (NETWORK | LOAD | ALL_HOSTS)) == 0
    }

    /// What its module was granted where it is offered.
    pub fn grants(&self) -> Grants {
        Grants(self.granted)
    }

    /// Whether a request may run twice there: the module can do nothing that acts outside.
    pub fn repeatable(&self) -> bool {
        self.granted & NETWORK == 0
    }

    /// Deadline of a request that names none, and the longest.
    pub fn timeouts(&self) -> (Duration, Duration) {
        (Duration::from_millis(self.timeout_ms.0), Duration::from_millis(self.timeout_ms.1))
    }

    /// What answers say.
    pub fn facts(&self) -> Facts {
        let graphs: Vec<String> = self.parts.graphs.iter().map(|(name, digest)| format!("{name}={digest}")).collect();
        let mut headers = Vec::new();
        for (name, text) in [
            (MODEL, self.model.as_str()),
            (VERSION, &self.version),
            (MODULE, &self.parts.module),
            (GRAPHS, &graphs.join(",")),
            (ENGINE, &self.engine),
            (super::wire::DIGEST, &hex(&self.parts.digest())),
        ] {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.push((name, value));
            }
        }
        Facts::new(headers)
    }
}

/// Whether any of its inputs or outputs is FP16 or BF16.
fn has_halves(signature: &GraphSpec) -> bool {
    let is_half = |spec: &TensorSpec| matches!(spec.datatype, DataType::Fp16 | DataType::Bf16);
    signature.inputs.iter().chain(&signature.outputs).any(is_half)
}

/// What a module is granted that asks for so much, as bits.
fn granted(asked: &windrose_sandbox::Grants, ceiling: &windrose_sandbox::Grants) -> u64 {
    let granted = asked.min(ceiling);
    let network = match granted.network.len() {
        0 => 0,
        all if all == asked.network.len() => NETWORK | ALL_HOSTS,
        _ => NETWORK,
    };
    network | if granted.load { LOAD } else { 0 }
}

impl Facts {
    /// What is said of a server that nobody can verify.
    pub fn unverified(model: &str) -> Facts {
        let mut headers = vec![(super::wire::DIGEST, HeaderValue::from_static("unverified"))];
        headers.extend(HeaderValue::from_str(model).ok().map(|value| (MODEL, value)));
        Facts::new(headers)
    }

    fn new(headers: Vec<(HeaderName, HeaderValue)>) -> Facts {
        let all = [MODEL, VERSION, MODULE, GRAPHS, ENGINE].into_iter();
        let silent = all.filter(|name| headers.iter().all(|(said, _)| said != name)).collect();
        Facts { headers, silent }
    }

    /// Puts them on an answer.
    pub fn stamp(&self, headers: &mut HeaderMap) {
        for name in &self.silent {
            headers.remove(name);
        }
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
    }
}

/// The load of a version that is served here.
pub fn load(served: &Served) -> Load {
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let (mut queued, mut parallel, mut engine_time) = (0, usize::MAX, 0);
    for (_, graph) in &served.graphs {
        let counts = graph.counts();
        queued += graph.queued();
        parallel = parallel.min(graph.info().sessions);
        engine_time += counts.compute_ns / counts.inferences.max(1);
    }
    Load {
        in_flight: small(served.calls.here()),
        queued: small(queued),
        parallel: if served.graphs.is_empty() { 0 } else { small(parallel) },
        engine_time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_golden_test_that_json_cannot_carry_is_sent_to_nobody() {
        let signature = |input, output| {
            let one = |datatype| vec![TensorSpec { name: "x".into(), datatype, shape: None }];
            GraphSpec { inputs: one(input), outputs: one(output) }
        };
        assert!(has_halves(&signature(DataType::Fp16, DataType::Fp32)));
        assert!(has_halves(&signature(DataType::Int64, DataType::Bf16)));
        assert!(!has_halves(&signature(DataType::Fp32, DataType::Bytes)));
        let golden = |more: serde_json::Value| {
            let test = serde_json::json!({"input": "in", "output": "out"});
            let parts = serde_json::json!({"module": "", "graphs": {}, "assets": {}, "command": "", "test": test});
            let mut offer = serde_json::json!({"model": "m", "version": "1", "parts": parts, "infers": true,
                "engine": "", "granted": 0, "timeout_ms": [1000, 1000]});
            offer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value::<Offer>(offer).unwrap().golden().is_some()
        };
        assert!(golden(serde_json::json!({})) && golden(serde_json::json!({"halves": false})));
        assert!(!golden(serde_json::json!({"halves": true})) && !golden(serde_json::json!({"infers": false})));
    }

    #[test]
    fn what_is_granted_decides_and_not_what_is_asked() {
        let grants = |network: &[&str], load| windrose_sandbox::Grants {
            network: network.iter().map(|&host| host.to_owned()).collect(),
            load,
        };
        let two = ["a.example", "b.example:443"];
        let cases: [(&[&str], u64); 4] = [
            (&[], 0),
            (&["c.example"], 0),
            // Some of it acts outside as well as all of it.
            (&two[..1], NETWORK),
            (&two, NETWORK | ALL_HOSTS),
        ];
        for (ceiling, network) in cases {
            for load in [false, true] {
                let bits = granted(&grants(&two, true), &grants(ceiling, load));
                assert_eq!(bits, network | if load { LOAD } else { 0 }, "{ceiling:?}");
            }
        }
        assert_eq!(granted(&grants(&[], false), &grants(&two, true)), 0);
    }

    #[test]
    fn a_golden_input_is_enough_to_ask_a_model_that_takes_inferences() {
        let offer = |infers: bool, test: serde_json::Value| -> Offer {
            let parts = serde_json::json!({"module": "", "graphs": {}, "assets": {}, "command": "", "test": test});
            let offer = serde_json::json!({"model": "m", "version": "1", "parts": parts, "infers": infers, "engine": "",
                "granted": 0, "timeout_ms": [1000, 1000]});
            serde_json::from_value(offer).unwrap()
        };
        let input = || serde_json::json!({"input": "in"});
        assert_eq!(offer(true, input()).golden().map(|test| test.input.as_str()), Some("in"));
        assert!(offer(false, input()).golden().is_none() && offer(true, serde_json::json!(null)).golden().is_none());
    }

    /// What a peer says of a version of a model: that so much is asked for, and so much was granted.
    fn said(asks: Option<u64>, granted: u64) -> serde_json::Value {
        let mut parts = serde_json::json!({"module": "", "graphs": {}, "assets": {}, "command": "", "test": null});
        if let Some(asks) = asks {
            parts["asks"] = serde_json::json!([asks, "sha256"]);
        }
        serde_json::json!({"model": "m", "version": "1", "parts": parts, "infers": true, "engine": "",
            "granted": granted, "jurisdictions": {"allow": ["eu"]}, "timeout_ms": [1, 1]})
    }

    #[test]
    fn what_no_gateway_could_grant_is_not_used_and_its_law_binds() {
        let cases = [
            (None, 0, true),
            (None, NETWORK, false),
            (Some(LOAD), LOAD, true),
            (Some(LOAD), LOAD | NETWORK, false),
            (Some(NETWORK | ALL_HOSTS), NETWORK, true),
            // What is not known here.
            (Some(u64::MAX), 1 << 40, false),
        ];
        for (asks, granted, used) in cases {
            let text = serde_json::json!({"generation": 1, "ready": [said(asks, granted)]}).to_string();
            let catalog = Catalog::read(text.as_bytes()).unwrap();
            assert_eq!((catalog.ready.len(), catalog.unready.len()), (usize::from(used), usize::from(!used)), "{text}");
            let law = super::super::laws::of(&catalog).remove("m").unwrap();
            assert_eq!(law[0].1.allow.as_deref(), Some(&["eu".to_owned()][..]));
        }
    }

    #[test]
    fn what_a_module_asks_for_is_part_of_its_digest() {
        let digest = |asks| serde_json::from_value::<Offer>(said(asks, 0)).unwrap().parts.digest();
        assert_ne!(digest(None), digest(Some(NETWORK)));
        assert_ne!(digest(Some(LOAD)), digest(Some(NETWORK)));
    }
}
