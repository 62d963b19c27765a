//! Which provider each node of a session was given to.
//!
//! The library's functions that tell came with release 1.24. Older ones are used as well, and their table of functions
//! ends before: so these are looked up here, and only where they are.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::ptr::null;

use ort::AsPointer;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::sys::{OrtApiBase, OrtEpAssignedNode, OrtEpAssignedSubgraph, OrtSession, OrtStatusPtr};

use super::library;
use super::value::{check, short};
use crate::EngineError;

/// The minor number of the first release that tells.
pub(super) const SINCE: u32 = 24;

/// The option of a session that remembers what it is to tell.
const RECORD: &str = "session.record_ep_graph_assignment_info";

/// The library's functions as its interface of [`SINCE`] has them, up to those that are needed.
#[repr(C)]
struct Table {
    /// Those before them. The library's own source asserts their places: a table only grows at its end.
    _before: [usize; 407],
    /// `Session_GetEpGraphAssignmentInfo`
    subgraphs: unsafe extern "system" fn(
        session: *const OrtSession,
        subgraphs: *mut *const *const OrtEpAssignedSubgraph,
        count: *mut usize,
    ) -> OrtStatusPtr,
    /// `EpAssignedSubgraph_GetEpName`
    provider:
        unsafe extern "system" fn(subgraph: *const OrtEpAssignedSubgraph, name: *mut *const c_char) -> OrtStatusPtr,
    /// `EpAssignedSubgraph_GetNodes`
    nodes: unsafe extern "system" fn(
        subgraph: *const OrtEpAssignedSubgraph,
        nodes: *mut *const *const OrtEpAssignedNode,
        count: *mut usize,
    ) -> OrtStatusPtr,
}

/// Reads them from sessions of the library that was initialised.
#[derive(Clone, Copy)]
pub(super) struct Assignments(&'static Table);

/// Has the session that is built remember where its nodes are.
pub(super) fn recorded(builder: SessionBuilder) -> Result<SessionBuilder, ort::Error> {
    Ok(builder.with_config_entry(RECORD, "1")?)
}

impl Assignments {
    /// Those of a library; `None` where it is too old to tell. It must be the one whose sessions are read.
    pub fn of(base: &'static OrtApiBase, version: &str) -> Option<Assignments> {
        // An old library would answer null, but not without a line on standard error.
        library::release(version).filter(|(_, minor)| *minor >= SINCE)?;
        #[expect(unsafe_code, reason = "ONNX Runtime is called through its C interface")]
        // SAFETY: the library returns null, or the static table of that interface or a longer one: `Table` is how it
        // begins, function pointers all of them.
        unsafe {
            (base.GetApi)(SINCE).cast::<Table>().as_ref().map(Assignments)
        }
    }

    /// How many nodes each provider was given, by its short name, in a session that was built as [`recorded`]. The
    /// library has fused some of them since, and added copies between devices.
    pub fn read(self, session: &Session) -> Result<BTreeMap<String, usize>, EngineError> {
        let Assignments(table) = self;
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        let (mut subgraphs, mut count) = (null(), 0);
        #[expect(unsafe_code, reason = "ONNX Runtime is called through its C interface")]
        // SAFETY: the session is a live one of the library that the table is of, and the out pointers are valid. What
        // the library returns is the session's: `count` pointers to subgraphs, and for each a C string that is copied.
        unsafe {
            check((table.subgraphs)(session.ptr(), &mut subgraphs, &mut count))?;
            for at in 0..count {
                let subgraph = *subgraphs.add(at);
                let (mut name, mut nodes, mut length) = (null(), null(), 0);
                check((table.provider)(subgraph, &mut name))?;
                check((table.nodes)(subgraph, &mut nodes, &mut length))?;
                *found.entry(short(CStr::from_ptr(name))).or_default() += length;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use ort::sys::OrtApi;

    use super::super::{OnnxRuntime, committed, find, on_gpu};
    use super::*;
    use crate::{Device, EnginesConfig};

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    fn onnx(name: &str) -> Vec<u8> {
        std::fs::read(root().join("models/test").join(name)).expect("a graph")
    }

    /// The engine; its library may be missing on a laptop, and not in CI.
    fn engine() -> Option<OnnxRuntime> {
        let config = EnginesConfig { search: vec![root().join("target/onnxruntime")], ..EnginesConfig::default() };
        let found = find(&config).expect("engines");
        assert!(found.is_some() || std::env::var_os("CI").is_none(), "ONNX Runtime is missing: `make onnxruntime`");
        if found.is_none() {
            eprintln!("SKIPPED: ONNX Runtime's library is missing: `make onnxruntime`");
        }
        found
    }

    /// The nodes by provider of a session on the CPU.
    fn nodes(engine: &OnnxRuntime, name: &str) -> Option<BTreeMap<String, usize>> {
        let Some(assignments) = engine.assignments else {
            eprintln!("SKIPPED: ONNX Runtime {} does not tell", engine.info.version);
            return None;
        };
        let builder = recorded(engine.builder(1).expect("a builder")).expect("the option");
        let session = committed(builder, &onnx(name)).expect("a session");
        Some(assignments.read(&session).expect("the nodes"))
    }

    #[test]
    fn nodes_are_counted_by_their_provider() {
        let Some(engine) = engine() else { return };
        // One node; several; some in the branches of another.
        for (name, least) in [("identity_fp32.onnx", 1), ("tiny.onnx", 2), ("if.onnx", 3)] {
            let Some(nodes) = nodes(&engine, name) else { return };
            assert_eq!(nodes.keys().collect::<Vec<_>>(), ["CPU"], "{name}");
            assert!((least..10).contains(&nodes["CPU"]), "{name}: {nodes:?}");
        }
    }

    #[test]
    fn a_graph_whose_nodes_are_all_on_the_cpu_is_refused_for_a_gpu() {
        let refused = |nodes| match on_gpu(nodes) {
            Err(EngineError::Unsupported(why)) => assert!(why.contains("takes none of this graph's nodes"), "{why}"),
            other => panic!("{other:?}"),
        };
        refused(BTreeMap::new());
        refused(BTreeMap::from([("CPU".to_owned(), 3), ("CUDA".to_owned(), 0)]));
        let some = BTreeMap::from([("CPU".to_owned(), 3), ("CUDA".to_owned(), 1)]);
        assert_eq!(on_gpu(some.clone()), Ok(some));
        if let Some(nodes) = engine().and_then(|engine| nodes(&engine, "tiny.onnx")) {
            refused(nodes);
        }
    }

    #[test]
    fn a_library_that_does_not_tell_is_refused_for_a_gpu_and_serves_the_cpu() {
        let Some(engine) = engine() else { return };
        let old = OnnxRuntime { assignments: None, ..engine };
        let session = |device| old.session(&onnx("tiny.onnx"), 1, device);
        match session(Device::Cuda).err() {
            Some(EngineError::Unavailable(why)) => assert!(why.contains("1.24 is needed"), "{why}"),
            other => panic!("{other:?}"),
        }
        let (_, nodes) = session(Device::Cpu).expect("a session");
        assert!(nodes.is_empty());
    }

    #[test]
    fn an_older_library_is_not_asked() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        extern "system" fn none(_: u32) -> *const OrtApi {
            ASKED.fetch_add(1, SeqCst);
            null()
        }
        extern "system" fn version() -> *const c_char {
            c"1.22.0".as_ptr()
        }
        static BASE: OrtApiBase = OrtApiBase { GetApi: none, GetVersionString: version };
        for old in ["1.22.0", "1.23.2", ""] {
            assert!(Assignments::of(&BASE, old).is_none() && ASKED.load(SeqCst) == 0, "{old}");
        }
        assert!(Assignments::of(&BASE, "1.24.1").is_none() && ASKED.load(SeqCst) == 1);
    }
}
