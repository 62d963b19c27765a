//! The floor of the sandbox: the same guest on bare wasmtime, with the pool and the compiler settings of ours, and without
//! epochs, limits, a host of `wasi:nn` or anything else that makes it safe to run a stranger's.

use anyhow::{Result, anyhow};
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};

/// What stands behind a resource whose import traps.
pub type Nothing = ();

mod bindings {
    wasmtime::component::bindgen!({
        path: "../guest-sdk/wit",
        world: "windrose:model/model",
        exports: { default: async },
        with: { "wasi:nn/tensor.tensor": super::Nothing },
    });
}

use bindings::ModelPre;
use bindings::windrose::model::types::{ByteStrings, NamedValue, Parameter, Request, Value};

/// A guest that bare wasmtime runs. Its imports trap: it is only asked for what needs none.
pub struct Bare {
    engine: Engine,
    linker: Linker<()>,
    pre: ModelPre<()>,
    /// Its code, as wasmtime writes it to a file.
    code: Vec<u8>,
}

impl Bare {
    /// Compiles a guest.
    pub fn new(wasm: &[u8]) -> Result<Bare> {
        Bare::compile(wasm, false)
    }

    /// Compiles a guest whose code looks for the end of an epoch, which never comes.
    pub fn with_epochs(wasm: &[u8]) -> Result<Bare> {
        Bare::compile(wasm, true)
    }

    fn compile(wasm: &[u8], epochs: bool) -> Result<Bare> {
        let mut pool = PoolingAllocationConfig::new();
        pool.linear_memory_keep_resident(1 << 20)
            .table_keep_resident(64 << 10)
            .async_stack_keep_resident(64 << 10)
            .pagemap_scan(Enabled::Auto);
        let mut config = Config::new();
        config
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
            .memory_reservation(4 << 30)
            .epoch_interruption(epochs)
            .concurrency_support(false)
            .wasm_component_model_async(false)
            .relaxed_simd_deterministic(true);
        let engine = Engine::new(&config).map_err(|e| anyhow!("{e:#}"))?;
        let component = Component::from_binary(&engine, wasm).map_err(|e| anyhow!("{e:#}"))?;
        let mut linker = Linker::new(&engine);
        linker.define_unknown_imports_as_traps(&component).map_err(|e| anyhow!("{e:#}"))?;
        let pre = linker.instantiate_pre(&component).and_then(ModelPre::new).map_err(|e| anyhow!("{e:#}"))?;
        let code = component.serialize().map_err(|e| anyhow!("{e:#}"))?;
        Ok(Bare { engine, linker, pre, code })
    }

    /// Bytes of its code.
    pub fn size(&self) -> usize {
        self.code.len()
    }

    /// Loads the code from memory, links it, asks an instance for its signature, and drops all of it.
    #[expect(unsafe_code, reason = "a precompiled module is native code")]
    pub async fn load(&self) -> Result<()> {
        // SAFETY: these are the bytes that `Component::serialize` returned for this very engine.
        let component = unsafe { Component::deserialize(&self.engine, &self.code) }.map_err(|e| anyhow!("{e:#}"))?;
        let pre = self.linker.instantiate_pre(&component).and_then(ModelPre::new).map_err(|e| anyhow!("{e:#}"))?;
        self.ask(&pre).await
    }

    /// A fresh instance, asked for its signature, and dropped.
    pub async fn describe(&self) -> Result<()> {
        self.ask(&self.pre).await
    }

    async fn ask(&self, pre: &ModelPre<()>) -> Result<()> {
        let mut store = Store::new(&self.engine, ());
        let model = pre.instantiate_async(&mut store).await.map_err(|e| anyhow!("{e:#}"))?;
        model.windrose_model_handler().call_describe(&mut store).await.map_err(|e| anyhow!("{e:#}"))?;
        Ok(())
    }

    /// A fresh instance of the example `pictures`, which runs a helper over a file.
    pub async fn picture(&self, file: &[u8], helper: &str, times: i64) -> Result<()> {
        let mut store = Store::new(&self.engine, ());
        store.set_epoch_deadline(1);
        let model = self.pre.instantiate_async(&mut store).await.map_err(|e| anyhow!("{e:#}"))?;
        let file = Value::Strings(ByteStrings { shape: vec![1], elements: vec![file.to_vec()] });
        let request = Request {
            inputs: vec![NamedValue { name: "file".into(), value: file }],
            outputs: vec!["sum".into()],
            parameters: vec![
                ("helper".into(), Parameter::Text(helper.into())),
                ("times".into(), Parameter::Integer(times)),
            ],
        };
        // Its answer is a tensor, whose making traps here; by then the work is done.
        let _ = model.windrose_model_handler().call_infer(&mut store, &request).await;
        Ok(())
    }
}
