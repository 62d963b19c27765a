//! The child: `windrose prepare`. It limits itself before it touches anything that was uploaded, and answers on its
//! standard output, a JSON object a line.

use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::runtime::Runtime;
use windrose_engine::{Batching, Calibration, EngineError, Engines, Graph, default_tenant, process};
use windrose_sandbox::{CallContext, CallError, Module, ModuleError, ModuleKind, PASSTHROUGH, Sandbox};

use super::job::{Event, GraphReport, Job, Line, Prepared, Status};
use super::{BATCHING, PrepareError, selftest};
use crate::config::Budget;
use crate::control::store::hex_digest;

/// Reads one job from standard input, does it, and ends the process: 0 when the outcome was told, whatever it is.
pub fn main() -> ! {
    let limits = |error| PrepareError::Host(format!("limits: {error}"));
    let outcome = process::enter().map_err(limits).and_then(|()| read_job()).and_then(|job| {
        limit_self(&job).map_err(limits)?;
        prepare(&job)
    });
    say(&match outcome {
        Ok(prepared) => Line::Done(Box::new(prepared)),
        Err(PrepareError::Refused(message)) => Line::Refused(message),
        Err(PrepareError::Host(message)) => Line::Host(message),
    });
    // A graph that never returns still holds its thread: end without waiting for it.
    std::process::exit(0)
}

fn read_job() -> Result<Job, PrepareError> {
    let host = |message: String| PrepareError::Host(format!("job: {message}"));
    let mut stdin = std::io::BufReader::new(std::io::stdin());
    let mut line = String::new();
    stdin.read_line(&mut line).map_err(|error| host(error.to_string()))?;
    // The server keeps its end open for as long as it wants the answer.
    std::thread::spawn(move || {
        let _ = stdin.read(&mut [0]);
        std::process::exit(1);
    });
    serde_json::from_str(&line).map_err(|error| host(error.to_string()))
}

fn limit_self(job: &Job) -> std::io::Result<()> {
    // Not the addresses: a sandbox reserves terabytes that it may never touch.
    let Budget { memory, cpu, .. } = job.budget;
    process::limit(&process::Limits { memory, addresses: None, cpu: Some(cpu), files: 1024 })
}

/// An error of the sandbox that is this machine's: what it says may name files here, and is for the log.
pub(super) fn sandbox_failed(detail: String) -> PrepareError {
    say(&Line::Log(detail));
    PrepareError::Host("the sandbox failed; the gateway's log says why".into())
}

fn say(line: &Line) {
    if let Ok(mut text) = serde_json::to_string(line) {
        text.push('\n');
        let mut stdout = std::io::stdout().lock();
        // When nobody listens any more the process is about to be killed.
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    }
}

/// Runs a stage, tells when it starts and ends, and keeps its time under `key`.
struct Stages {
    timings: BTreeMap<String, u64>,
}

impl Stages {
    fn run<T>(
        &mut self,
        key: &str,
        stage: String,
        work: impl FnOnce() -> Result<T, PrepareError>,
    ) -> Result<T, PrepareError> {
        say(&Line::Event(Event { stage: stage.clone(), status: Status::Started, ms: None }));
        let start = Instant::now();
        let result = work()?;
        let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        *self.timings.entry(key.to_string()).or_default() += ms;
        say(&Line::Event(Event { stage, status: Status::Done, ms: Some(ms) }));
        Ok(result)
    }
}

fn prepare(job: &Job) -> Result<Prepared, PrepareError> {
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| PrepareError::Host(error.to_string()))?;
    let _entered = runtime.enter();
    let mut stages = Stages { timings: BTreeMap::new() };
    let sandbox = job.host.sandbox().map_err(refuse_module)?;
    // What ends this process is found out here.
    let engines = Arc::new(job.host.engines().map_err(refuse_graph)?.expendable());
    let module = compile(job, &sandbox, &runtime, &mut stages)?;
    let graphs = load_graphs(job, &engines, &mut stages)?;
    let program =
        job.binding.program(&sandbox, module.clone(), graphs.clone(), engines.clone()).map_err(refuse_module)?;
    let context = || CallContext {
        deadline: Instant::now() + job.binding.limits.wall(),
        request_id: "self-test".into(),
        tenant: default_tenant(),
    };
    let signature = match module.kind() {
        ModuleKind::Model => Some(stages.run("describe", "describe".into(), || {
            let described = runtime.block_on(program.describe(&context()));
            described.map_err(|error| match error {
                CallError::Host(_) | CallError::NotLoaded(_) => sandbox_failed(format!("describe: {error}")),
                error => PrepareError::Refused(format!("the module's `describe` failed: {error}")),
            })
        })?),
        ModuleKind::Http | ModuleKind::Command => None,
    };
    let warnings = stages.run("test", "test".into(), || {
        let subject = selftest::Subject { kind: module.kind(), program: &program, signature: signature.as_ref() };
        match &job.test {
            Some(test) => runtime.block_on(selftest::golden(&subject, test, &context())).map(|()| Vec::new()),
            None => runtime.block_on(selftest::zeros(&graphs, job.module.is_none(), job.binding.limits.wall())),
        }
    })?;
    let batching = stages.run("batching", BATCHING.into(), || Ok(runtime.block_on(try_batching(job, &graphs))))?;
    let total = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    stages.timings.insert("total".into(), total);
    Ok(report(&module, signature, &graphs, Findings { batching, timings_ms: stages.timings, warnings }))
}

/// The compiled module: the cached one, or else what its initialiser left behind, or the module as it is.
fn compile(job: &Job, sandbox: &Sandbox, runtime: &Runtime, stages: &mut Stages) -> Result<Module, PrepareError> {
    let read = |path| std::fs::read(path).map_err(|error| PrepareError::Host(format!("module: {error}")));
    let wasm = job.module.as_ref().map(read).transpose()?;
    let wasm = wasm.as_deref().unwrap_or(PASSTHROUGH);
    if !Sandbox::has_initialiser(wasm) || sandbox.is_cached(&hex_digest(wasm)) {
        return stages.run("compile", "compile".into(), || sandbox.module(wasm).map_err(refuse_module));
    }
    let initialised = stages.run("initialise", "initialise".into(), || {
        runtime.block_on(sandbox.initialise(wasm, &job.binding.limits)).map_err(refuse_module)
    })?;
    stages.run("compile", "compile".into(), || sandbox.initialised(initialised).map_err(refuse_module))
}

fn load_graphs(job: &Job, engines: &Engines, stages: &mut Stages) -> Result<BTreeMap<String, Graph>, PrepareError> {
    let mut graphs = BTreeMap::new();
    for (name, (path, options)) in &job.graphs {
        let graph = stages.run("graphs", format!("graph {name}"), || {
            let bytes = std::fs::read(path).map_err(|error| PrepareError::Host(format!("graph {name}: {error}")))?;
            // One session shows what all of them would.
            let options = windrose_engine::GraphOptions { sessions: Some(1), ..options.clone() };
            // The input of a golden test says what a graph takes; the zeros of the other test say nothing.
            let loaded = match job.test {
                Some(_) => engines.load_to_try(Bytes::from(bytes), &options),
                None => engines.load(Bytes::from(bytes), &options),
            };
            loaded.map_err(|error| match error {
                EngineError::Stopped => PrepareError::Host(error.to_string()),
                _ => PrepareError::Refused(format!("graph `{name}`: {error}")),
            })
        })?;
        graphs.insert(name.clone(), graph);
    }
    Ok(graphs)
}

/// Tries each graph with several rows, unless that is known or not wanted.
async fn try_batching(job: &Job, graphs: &BTreeMap<String, Graph>) -> BTreeMap<String, Calibration> {
    let mut found = job.batching.clone();
    for (name, graph) in graphs {
        if found.get(name).is_some_and(|known| !known.is_of(&graph.info().engine)) {
            found.remove(name);
        }
        let wanted = job.graphs.get(name).is_none_or(|(_, options)| options.batching != Batching::Off);
        if !found.contains_key(name) {
            let calibration = match wanted {
                true => windrose_engine::calibrate(graph, job.budget.trial).await,
                false => Calibration::refused("the manifest switches it off"),
            };
            found.insert(name.clone(), calibration);
        }
    }
    found
}

/// What was found beside that it works.
struct Findings {
    batching: BTreeMap<String, Calibration>,
    timings_ms: BTreeMap<String, u64>,
    warnings: Vec<String>,
}

fn report(
    module: &Module,
    signature: Option<windrose_engine::GraphSpec>,
    graphs: &BTreeMap<String, Graph>,
    findings: Findings,
) -> Prepared {
    let Findings { mut batching, timings_ms, warnings } = findings;
    let graphs = graphs.iter().map(|(name, graph)| {
        let batching = batching.remove(name).unwrap_or_default();
        (name.clone(), GraphReport { info: graph.info().clone(), spec: graph.spec().clone(), batching })
    });
    Prepared {
        module_digest: module.digest().to_string(),
        kind: module.kind(),
        imports: module.imports().to_vec(),
        signature,
        graphs: graphs.collect(),
        timings_ms,
        warnings,
    }
}

fn refuse_module(error: ModuleError) -> PrepareError {
    match error {
        ModuleError::Host(_) => sandbox_failed(error.to_string()),
        _ => PrepareError::Refused(format!("module: {error}")),
    }
}

fn refuse_graph(error: EngineError) -> PrepareError {
    PrepareError::Host(error.to_string())
}
