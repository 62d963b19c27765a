//! Write models for the Windrose gateway.
//!
//! A model is a WebAssembly component: it prepares what the caller sent, has a graph computed by the host through
//! `wasi:nn`, and makes an answer of the result. This is a whole one:
//!
//! ```
//! use windrose_guest::prelude::*;
//! fn infer(request: Request) -> Result<Response> {
//!     Graph::by_name("model")?.run(request)
//! }
//! windrose_guest::export!(fn infer);
//! ```
//!
//! Numbers are [`Tensor`]s, handles to memory of the host: one that is only passed on never enters the module. Reading
//! one copies it in. Texts, files and pictures are [`Strings`]; a graph takes them as well, and what it returns of them is
//! a handle, too, until [`Outputs::strings`] reads it.
//!
//! ```
//! use windrose_guest::{numeric, prelude::*, testing};
//!
//! struct Scores;
//!
//! impl Model for Scores {
//!     fn describe() -> Signature {
//!         Signature::new().input("x", DataType::Fp32, &[1, ANY]).output("probability", DataType::Fp32, &[1, ANY])
//!     }
//!
//!     fn infer(mut request: Request) -> Result<Response> {
//!         let mut answer = Graph::by_name("model")?.compute([("x", request.tensor("x")?)])?;
//!         let mut scores = answer.tensor("logits")?.to_vec::<f32>()?;
//!         numeric::softmax(&mut scores);
//!         Ok(Response::new().with("probability", Tensor::new(&[1, scores.len()], &scores)?))
//!     }
//! }
//!
//! windrose_guest::export!(Scores);
//!
//! // Outside of WebAssembly a test plays the host.
//! testing::graph("model", |mut inputs| {
//!     let x = inputs.tensor("x")?;
//!     Ok(Outputs::from([("logits", x)]))
//! });
//! let request = Request::new().with("x", Tensor::new(&[1, 2], &[1.0f32, 1.0])?);
//! let answer = Scores::infer(request)?.tensor("probability")?;
//! assert_eq!(answer.to_vec::<f32>()?, [0.5, 0.5]);
//! # Ok::<(), Error>(())
//! ```
//!
//! The helpers ([`numeric`], [`pixels`], `picture`, `resize`) use the SIMD instructions of WebAssembly where the module
//! is built with them, which `guest-sdk/build.py` does.

#[cfg(target_family = "wasm")]
mod adapter;
#[cfg(target_family = "wasm")]
#[doc(hidden)]
#[allow(unsafe_code, reason = "generated from the contract")]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "windrose:model/model",
        pub_export_macro: true,
        export_macro_name: "export_handler",
        default_bindings_module: "windrose_guest::bindings",
        generate_all,
    });
}
#[cfg(target_family = "wasm")]
#[doc(hidden)]
#[allow(unsafe_code, reason = "generated from the contract")]
pub mod initialize_bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "windrose:model/initialized",
        pub_export_macro: true,
        export_macro_name: "export_initializer",
        default_bindings_module: "windrose_guest::initialize_bindings",
        generate_all,
    });
}
mod error;
mod graph;
mod host;
#[cfg(all(feature = "resize", any(target_family = "wasm", test)))]
mod lanes;
mod message;
pub mod numeric;
#[cfg(feature = "image")]
pub mod picture;
pub mod pixels;
#[cfg(all(feature = "resize", any(target_family = "wasm", test)))]
mod resample;
#[cfg(feature = "resize")]
pub mod resize;
mod signature;
mod simd;
mod strings;
mod tensor;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
#[cfg(all(feature = "resize", any(target_family = "wasm", test)))]
mod windows;

pub use error::{Error, Result};
pub use graph::{Graph, Outputs};
pub use message::{Parameter, Request, Response, Value};
pub use signature::{ANY, DataType, Signature};
pub use strings::Strings;
pub use tensor::{Data, Element, Tensor, TensorType};

#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub use adapter::{Adapter, Initialise, Initialiser};

/// All that most models use.
pub mod prelude {
    pub use crate::{
        ANY, DataType, Error, Graph, Model, Outputs, Request, Response, Result, Signature, Strings, Tensor,
    };
}

/// A model: what a module of the world `windrose:model/model` is.
pub trait Model {
    /// What it takes and returns; asked once, when the model is deployed. The default says: what the graph named `model`
    /// does.
    fn describe() -> Signature {
        Signature::of_graph("model")
    }

    /// Answers one request.
    ///
    /// # Errors
    /// [`Error::invalid_input`] where the caller is at fault (the message reaches the caller), else [`Error::internal`]
    /// (the message reaches the log).
    fn infer(request: Request) -> Result<Response>;
}

/// Makes a [`Model`] the export of this module: `export!(MyModel)`, or `export!(fn infer)` for a function that answers as
/// the graph named `model` does, or `export!(fn infer, describe)` with its signature.
///
/// Each form takes an initialiser at its end, a function without arguments that returns [`Result`]`<()>`. It runs once,
/// when the module is deployed, and every instance starts from the memory that it leaves behind:
///
/// ```
/// use std::{collections::HashMap, sync::OnceLock};
/// use windrose_guest::prelude::*;
///
/// static WORDS: OnceLock<HashMap<&str, i64>> = OnceLock::new();
///
/// fn words() -> &'static HashMap<&'static str, i64> {
///     WORDS.get_or_init(|| include_str!("lib.rs").split(' ').zip(0..).collect())
/// }
///
/// fn prepare() -> Result<()> {
///     words();
///     Ok(())
/// }
///
/// fn infer(mut request: Request) -> Result<Response> {
///     let texts = request.strings("text")?;
///     let ids: Vec<i64> = texts.texts()?.iter().map(|word| words().get(word).copied().unwrap_or(0)).collect();
///     Ok(Response::new().with("id", Tensor::new(&[ids.len()], &ids)?))
/// }
///
/// fn describe() -> Signature {
///     Signature::new().input("text", DataType::Bytes, &[ANY]).output("id", DataType::Int64, &[ANY])
/// }
///
/// windrose_guest::export!(fn infer, describe, init = prepare);
/// # prepare()?;
/// # Ok::<(), Error>(())
/// ```
///
/// Nothing can be reached from it: no graph, file, variable or network, and no secure random numbers; clocks stand at
/// zero and the seeds of hash tables are fixed. What it opens it closes. Write the module so that it works without the
/// initialiser having run, as above: tests do not run it.
#[macro_export]
macro_rules! export {
    (fn $infer:path, init = $init:path) => {
        $crate::export!(fn $infer);
        $crate::export!(@init $init);
    };
    (fn $infer:path, $describe:path, init = $init:path) => {
        $crate::export!(fn $infer, $describe);
        $crate::export!(@init $init);
    };
    (@init $init:path) => {
        const _: fn() -> $crate::Result<()> = $init;
        #[cfg(target_family = "wasm")]
        const _: () = {
            pub struct Prepared;
            impl $crate::Initialise for Prepared {
                fn initialise() -> $crate::Result<()> {
                    $init()
                }
            }
            type Exported = $crate::Initialiser<Prepared>;
            $crate::initialize_bindings::export_initializer!(Exported with_types_in $crate::initialize_bindings);
        };
    };
    (fn $infer:path) => {
        const _: () = {
            struct Exported;
            impl $crate::Model for Exported {
                fn infer(request: $crate::Request) -> $crate::Result<$crate::Response> {
                    $infer(request)
                }
            }
            $crate::export!(Exported);
        };
    };
    (fn $infer:path, $describe:path) => {
        const _: () = {
            struct Exported;
            impl $crate::Model for Exported {
                fn describe() -> $crate::Signature {
                    $describe()
                }
                fn infer(request: $crate::Request) -> $crate::Result<$crate::Response> {
                    $infer(request)
                }
            }
            $crate::export!(Exported);
        };
    };
    ($model:ty, init = $init:path) => {
        $crate::export!($model);
        $crate::export!(@init $init);
    };
    ($model:ty) => {
        const _: () = {
            const fn is_a_model<M: $crate::Model>() {}
            is_a_model::<$model>();
            #[cfg(target_family = "wasm")]
            type Adapted = $crate::Adapter<$model>;
            #[cfg(target_family = "wasm")]
    $crate::bindings::export_handler!(Adapted with_types_in $crate::bindings);
        };
    };
}
