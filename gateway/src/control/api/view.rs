//! From what the registry holds to what the API shows.

use windrose_engine::{BatchPolicy, Calibration, Graph, Isolation};
use windrose_sandbox::{Import, ImportStatus, ModuleKind};

use super::types::{
    Asked, BatchingView, CalibrationView, GrantsView, GraphView, ImportView, LimitsView, LoadedView, ModelView,
    SignatureView, TimeoutView, ValidateAnswer, VersionState, VersionSummary, VersionView,
};
use crate::control::log::Preparation;
use crate::control::prepare::Prepared;
use crate::control::registry::{Entry, Standing};
use crate::snapshot::{Served, compare_versions};

/// The models of these entries, by name.
pub fn models(entries: &[Entry]) -> Vec<ModelView> {
    let mut models: Vec<ModelView> = Vec::new();
    for entry in entries {
        if models.last().is_none_or(|model| model.name != entry.name) {
            models.push(ModelView { name: entry.name.clone(), versions: Vec::new() });
        }
        if let Some(model) = models.last_mut() {
            model.versions.push(summary(entry));
        }
    }
    for model in &mut models {
        model.versions.sort_by(|a, b| compare_versions(&b.version, &a.version));
    }
    models
}

fn summary(entry: &Entry) -> VersionSummary {
    let (state, reason, kind) = match &entry.standing {
        Standing::Ready(loaded) => (VersionState::Ready, None, Some(kind_name(loaded.served.kind))),
        Standing::Loading => (VersionState::Loading, None, None),
        Standing::Failed(reason) => (VersionState::Failed, Some(reason.clone()), None),
    };
    let record = entry.record.as_deref();
    VersionSummary {
        version: entry.version.clone(),
        state,
        reason,
        kind: kind.map(str::to_string),
        description: record.map(|record| record.manifest.description.clone()).unwrap_or_default(),
        deployed: record.map(|record| record.deployed.clone()),
        deployer: record.and_then(|record| record.deployer.clone()),
    }
}

/// Everything about one version.
pub fn version(entry: &Entry) -> VersionView {
    let record = entry.record.as_deref();
    VersionView {
        name: entry.name.clone(),
        summary: summary(entry),
        manifest: record.map(|record| record.manifest.clone()),
        preparation: record.map(|record| record.preparation.clone()),
        loaded: match &entry.standing {
            Standing::Ready(ready) => {
                Some(loaded(&ready.served, &ready.imports, &ready.granted, record.map(|record| &record.preparation)))
            }
            Standing::Loading | Standing::Failed(_) => None,
        },
    }
}

fn isolation(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Process => "process",
        Isolation::Child => "child",
    }
}

fn loaded(
    served: &Served,
    imports: &[Import],
    granted: &windrose_sandbox::Grants,
    preparation: Option<&Preparation>,
) -> LoadedView {
    let manifest = &served.manifest;
    let graph = |(name, graph): &(String, Graph)| {
        let info = graph.info();
        let view = GraphView {
            digest: manifest.graphs.get(name).map(|entry| entry.digest.clone()).unwrap_or_default(),
            engine: info.engine.clone(),
            engine_version: info.version.clone(),
            provider: info.provider.clone(),
            nodes: info.nodes.clone(),
            sessions: info.sessions,
            threads: info.threads,
            isolation: isolation(info.isolation).to_string(),
            resident: graph.is_resident(),
            batching: batching(graph, preparation.and_then(|preparation| preparation.batching.get(name))),
            signature: SignatureView::from(graph.spec()),
        };
        (name.clone(), view)
    };
    LoadedView {
        module_digest: served.module_digest.clone(),
        pass_through: manifest.module.is_none(),
        module_resident: served.program.module().is_resident(),
        imports: imports.iter().map(|import| import_view(import, granted)).collect(),
        grants: Asked { asked: GrantsView::from(&manifest.grants), in_force: GrantsView::from(granted) },
        limits: Asked { asked: manifest.limits.clone(), in_force: LimitsView::from(&served.limits) },
        timeout: TimeoutView { default_ms: millis(served.default_timeout), max_ms: millis(served.max_timeout) },
        signature: served.signature.as_ref().map(SignatureView::from),
        graphs: served.graphs.iter().map(graph).collect(),
    }
}

/// What helps where time ran out.
const AGAIN: &str = "deploying it again tries again, for `prepare.trial`";

fn batching(graph: &Graph, found: Option<&Calibration>) -> BatchingView {
    let BatchPolicy { max_rows, delay } = graph.batching();
    let engine = &graph.info().engine;
    let refused = match found {
        None => Some("it was not tried when this was deployed".into()),
        Some(found) if !found.is_of(engine) => {
            Some(format!("it was tried under {} and runs under {engine}: deploy it as another version", found.engine))
        }
        Some(found) if found.cut_short => found.refused.as_ref().map(|why| format!("{why}; {AGAIN}")),
        Some(found) => found.refused.clone(),
    };
    let pays = || match found {
        _ if max_rows > 1 => None,
        Some(found) if found.cut_short && found.curve.len() < 2 => {
            Some(format!("there was no time to see what pays; {AGAIN}"))
        }
        _ => Some("no larger batch pays".to_string()),
    };
    BatchingView {
        max_rows,
        max_delay_us: u64::try_from(delay.as_micros()).unwrap_or(u64::MAX),
        padded: graph.padded(),
        unpadded_because: found.and_then(|found| found.padding_refused.clone()),
        alone_because: refused.or_else(pays),
        curve: found.map(|found| CalibrationView::from(found).curve).unwrap_or_default(),
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What a dry run found.
pub fn validated(prepared: Prepared, granted: &windrose_sandbox::Grants) -> ValidateAnswer {
    ValidateAnswer {
        kind: kind_name(prepared.kind).to_string(),
        module_digest: prepared.module_digest.clone(),
        imports: prepared.imports.iter().map(|import| import_view(import, granted)).collect(),
        signature: prepared.signature.as_ref().map(SignatureView::from),
        preparation: Preparation::from(prepared),
    }
}

fn import_view(import: &Import, granted: &windrose_sandbox::Grants) -> ImportView {
    let network = import.name.starts_with("wasi:sockets/") || import.name.starts_with("wasi:http/");
    let status = match import.status {
        ImportStatus::Provided => "provided",
        ImportStatus::Denied if network && !granted.network.is_empty() => "granted",
        ImportStatus::Denied => "denied",
    };
    ImportView { name: import.name.clone(), status: status.to_string() }
}

fn kind_name(kind: ModuleKind) -> &'static str {
    match kind {
        ModuleKind::Model => "model",
        ModuleKind::Http => "http",
        ModuleKind::Command => "command",
    }
}
