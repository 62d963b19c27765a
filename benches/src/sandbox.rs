//! The sandbox in this process: a fresh instance beside the same guest on bare wasmtime, an inference beside the bare
//! engine, and long work of a guest with and without epochs and limits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use windrose_engine::{Engines, EnginesConfig, Graph, GraphOptions, Job, OnnxRuntimeLibrary, Tensor};
use windrose_sandbox::{
    CallContext, Grants, InferRequest, Limits, PASSTHROUGH, Parameter, Program, ProgramConfig, Sandbox, SandboxConfig,
};

use crate::pairs::{Pairs, heading};
use crate::wasmtime_floor::Bare;

/// A sandbox with what its programs need.
pub struct Host {
    sandbox: Sandbox,
    engines: Arc<Engines>,
}

impl Host {
    /// A sandbox of the gateway's own settings, without a cache.
    pub fn new() -> Result<Host> {
        let config = SandboxConfig { cache: None, cache_key: None, instances: 16, memory: 1 << 30, modules: None };
        Host::with(Sandbox::new(config)?)
    }

    /// One with a cache, in which no idle module stays in memory.
    fn forgetful(folder: &Path) -> Result<Host> {
        let (cache, cache_key) = (Some(folder.join("cache")), Some(folder.join("key")));
        Host::with(Sandbox::new(SandboxConfig { cache, cache_key, instances: 16, memory: 1 << 30, modules: Some(1) })?)
    }

    fn with(sandbox: Sandbox) -> Result<Host> {
        let engines =
            EnginesConfig { onnxruntime: OnnxRuntimeLibrary::Search, search: vec!["target/onnxruntime".into()] };
        Ok(Host { sandbox, engines: Arc::new(Engines::new(engines)?) })
    }

    /// One session on one thread.
    fn graph(&self, file: &str) -> Result<Graph> {
        let onnx = std::fs::read(file).with_context(|| file.to_owned())?;
        let options = GraphOptions { sessions: Some(1), threads: Some(1), ..GraphOptions::default() };
        Ok(self.engines.load(Bytes::from(onnx), &options)?)
    }

    /// A guest as a model.
    pub fn program(&self, wasm: &[u8], graph: Option<Graph>) -> Result<Program> {
        self.program_of(wasm, graph, 1)
    }

    /// A guest as a model whose instances answer so many requests each.
    fn program_of(&self, wasm: &[u8], graph: Option<Graph>, reuse: u32) -> Result<Program> {
        let config = ProgramConfig {
            module: self.sandbox.module(wasm)?,
            label: "bench".into(),
            weight: 1,
            graphs: graph.map(|graph| ("model".to_owned(), graph)).into_iter().collect::<BTreeMap<_, _>>(),
            assets: None,
            args: Vec::new(),
            env: Vec::new(),
            limits: Limits { memory: 1 << 30, reuse, ..Limits::default() },
            grants: Grants::default(),
            engines: self.engines.clone(),
            closed: Vec::new(),
        };
        Ok(Program::new(&self.sandbox, config)?)
    }
}

/// What every call carries.
pub fn context() -> CallContext {
    CallContext { deadline: Instant::now() + Duration::from_secs(60), request_id: "bench".into(), tenant: "".into() }
}

/// A built example.
pub fn guest(name: &str) -> Result<Vec<u8>> {
    let path = PathBuf::from("target/guests").join(name).with_extension("wasm");
    std::fs::read(&path).with_context(|| format!("{}: run `make guests`", path.display()))
}

/// Prints the whole section. `rounds` pairs for each figure.
pub async fn section(rounds: usize) -> Result<()> {
    let host = Host::new()?;
    heading("A fresh instance, asked for its signature and dropped, beside bare wasmtime");
    for (name, wasm) in [("pass-through", PASSTHROUGH.to_vec()), ("scores, a guest of the SDK", guest("scores")?)] {
        instance(&host, name, &wasm, rounds).await?;
    }
    let folder = tempfile::tempdir()?;
    let forgetful = Host::forgetful(folder.path())?;
    heading("A call of a module that is loaded for it and leaves again: from the cache on disk, beside bare wasmtime");
    for (name, wasm) in
        [("pass-through", PASSTHROUGH.to_vec()), ("scores", guest("scores")?), ("embed", guest("embed")?)]
    {
        reload(&forgetful, name, &wasm, rounds).await?;
    }
    heading("An inference behind the sandbox, beside the bare engine (its queue and worker included)");
    for (title, wasm) in [("pass-through", PASSTHROUGH.to_vec()), ("scores", guest("scores")?)] {
        let tiny = ("models/tiny/model.onnx", &[1, 16][..]);
        inference(&host, &format!("tiny, {title}"), &wasm, tiny, rounds).await?;
        let large = ("models/test/identity_fp32.onnx", &[150_000][..]);
        inference(&host, &format!("600 KB, {title}"), &wasm, large, rounds).await?;
    }
    heading("An inference in an instance that is used again, beside one in a fresh instance");
    reuse(&host, "tiny, scores", &guest("scores")?, rounds).await
}

/// A guest's own work with epochs, limits and a watch over its CPU time, beside the same without; what of it the checks in
/// the guest's code are; and a whole request, of which the guest's work is a part.
pub async fn limits(rounds: usize, picture: &Path) -> Result<()> {
    let (host, wasm, file) = (Host::new()?, guest("pictures")?, std::fs::read(picture)?);
    let (bare, epochs) = (Bare::new(&wasm)?, Bare::with_epochs(&wasm)?);
    let program = host.program(&wasm, None)?;
    let signature = program.describe(&context()).await?;
    heading("A guest's own work with epochs and limits, beside bare wasmtime without any");
    for helper in ["decode", "smooth", "normalize", "softmax"] {
        let request = picture_request(&file, helper, 10);
        let checks = async || epochs.picture(&file, helper, 10).await;
        let pairs = Pairs::take((rounds, 3), checks, async || bare.picture(&file, helper, 10).await).await?;
        pairs.print(&format!("{helper}, checks for epochs alone"));
        let ours = async || {
            program.infer(&signature, request.clone(), &context()).await?;
            Ok(())
        };
        Pairs::take((rounds, 3), ours, async || bare.picture(&file, helper, 10).await).await?.print(helper);
    }
    heading("A request that decodes, resizes and infers, with epochs and limits, beside one without any");
    let graph = host.graph("target/models/mobilenet/model.onnx")?;
    let job = Job {
        inputs: vec![("input".into(), Tensor::from_vec([1, 3, 224, 224], vec![0f32; 3 * 224 * 224])?)],
        outputs: Vec::new(),
        deadline: None,
        tenant: "".into(),
        share: Default::default(),
    };
    let ours = async || {
        program.infer(&signature, picture_request(&file, "smooth", 1), &context()).await?;
        graph.compute(job.clone()).await?;
        Ok(())
    };
    let floor = async || {
        bare.picture(&file, "smooth", 1).await?;
        graph.compute(job.clone()).await?;
        Ok(())
    };
    Pairs::take((rounds, 10), ours, floor).await?.print("PNG of 451 x 300, MobileNetV2");
    Ok(())
}

/// Asks the example `pictures` to run a helper.
pub fn picture_request(file: &[u8], helper: &str, times: i64) -> InferRequest {
    let file = Tensor::from_strings([1], &[file]).map(|tensor| ("file".to_owned(), tensor));
    InferRequest {
        inputs: file.into_iter().collect(),
        parameters: vec![
            ("helper".into(), Parameter::Text(helper.into())),
            ("times".into(), Parameter::Integer(times)),
        ],
        outputs: vec!["sum".into()],
    }
}

async fn instance(host: &Host, name: &str, wasm: &[u8], rounds: usize) -> Result<()> {
    let graph = host.graph("models/tiny/model.onnx")?;
    let (bare, program) = (Bare::new(wasm)?, host.program(wasm, Some(graph))?);
    let ours = async || {
        program.describe(&context()).await?;
        Ok(())
    };
    Pairs::take((rounds, 500), ours, async || bare.describe().await).await?.print(name);
    Ok(())
}

async fn reload(host: &Host, name: &str, wasm: &[u8], rounds: usize) -> Result<()> {
    let graph = host.graph("models/tiny/model.onnx")?;
    let (bare, program) = (Bare::new(wasm)?, host.program(wasm, Some(graph))?);
    let modules = host.sandbox.modules();
    let before = modules.counts().reloads;
    let ours = async || {
        program.describe(&context()).await?;
        // What the call's end has begun on another thread ends here.
        modules.trim();
        Ok(())
    };
    let title = format!("{name}, {} KiB of code", bare.size() >> 10);
    Pairs::take((rounds, 50), ours, async || bare.load().await).await?.print(&title);
    anyhow::ensure!(modules.counts().reloads - before >= 50 * rounds as u64, "some calls found the module in memory");
    Ok(())
}

async fn reuse(host: &Host, title: &str, wasm: &[u8], rounds: usize) -> Result<()> {
    let graph = host.graph("models/tiny/model.onnx")?;
    let (fresh, again) = (host.program(wasm, Some(graph.clone()))?, host.program_of(wasm, Some(graph), 1000)?);
    let signature = fresh.describe(&context()).await?;
    let x = Tensor::from_vec([1, 16], vec![1f32; 16])?;
    let request = InferRequest { inputs: vec![("x".into(), x)], ..InferRequest::default() };
    let ask = async |program: &Program| {
        program.infer(&signature, request.clone(), &context()).await?;
        Ok(())
    };
    Pairs::take((rounds, 300), async || ask(&again).await, async || ask(&fresh).await).await?.print(title);
    Ok(())
}

async fn inference(
    host: &Host,
    title: &str,
    wasm: &[u8],
    (file, shape): (&str, &[usize]),
    rounds: usize,
) -> Result<()> {
    let graph = host.graph(file)?;
    let x = Tensor::from_vec(shape, vec![1f32; shape.iter().product()])?;
    let job = Job {
        inputs: vec![("x".into(), x.clone())],
        outputs: Vec::new(),
        deadline: None,
        tenant: "".into(),
        share: Default::default(),
    };
    let bare = async || {
        graph.compute(job.clone()).await?;
        Ok(())
    };
    let program = host.program(wasm, Some(graph.clone()))?;
    let signature = program.describe(&context()).await?;
    let request = InferRequest { inputs: vec![("x".into(), x)], ..InferRequest::default() };
    let ours = async || {
        program.infer(&signature, request.clone(), &context()).await?;
        Ok(())
    };
    Pairs::take((rounds, 300), ours, bare).await?.print(title);
    Ok(())
}
