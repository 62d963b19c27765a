//! What a component may import, and what it can be served as.

use wasmparser::{Encoding, Parser, Payload, Validator, WasmFeatures};

use crate::{Grants, Import, ImportStatus, ModuleError, ModuleKind};

/// The `wasi:nn` that is served, and what to say to a module of the older ABI.
const NN: &str = "wasi:nn@0.2.0-rc-2024-10-28";
const OLD_NN: &str = "wasi_ephemeral_nn";
/// How WebAssembly begins, components and core modules alike.
const MAGIC: &[u8] = b"\0asm";
/// What a component exports to be initialised once.
const INITIALISER: &str = "windrose:model/initialize";

/// How an interface is met.
#[derive(Clone, Copy, PartialEq)]
enum Policy {
    /// Works, within the model's limits.
    Provided,
    /// Denies until a network is granted.
    Network,
}

use Policy::{Network, Provided};

/// A package: its name, its line of versions, its interfaces.
type Package = (&'static str, &'static str, &'static [(&'static str, Policy)]);

/// Every interface that the linker has.
const KNOWN: &[Package] = &[
    (
        "wasi:nn",
        "0.2.0-rc-2024-10-28",
        &[("tensor", Provided), ("errors", Provided), ("inference", Provided), ("graph", Provided)],
    ),
    ("windrose:model", "0.1", &[("types", Provided)]),
    ("wasi:io", "0.2", &[("error", Provided), ("poll", Provided), ("streams", Provided)]),
    ("wasi:clocks", "0.2", &[("wall-clock", Provided), ("monotonic-clock", Provided)]),
    ("wasi:random", "0.2", &[("random", Provided), ("insecure", Provided), ("insecure-seed", Provided)]),
    ("wasi:filesystem", "0.2", &[("types", Provided), ("preopens", Provided)]),
    ("wasi:cli", "0.2", CLI),
    (
        "wasi:sockets",
        "0.2",
        &[
            ("network", Network),
            ("instance-network", Network),
            ("ip-name-lookup", Network),
            ("tcp", Network),
            ("tcp-create-socket", Network),
            ("udp", Network),
            ("udp-create-socket", Network),
        ],
    ),
    ("wasi:http", "0.2", &[("types", Provided), ("outgoing-handler", Network)]),
    ("wasi:clocks", "0.3", &[("types", Provided), ("monotonic-clock", Provided), ("system-clock", Provided)]),
    ("wasi:random", "0.3", &[("random", Provided), ("insecure", Provided), ("insecure-seed", Provided)]),
    ("wasi:filesystem", "0.3", &[("types", Provided), ("preopens", Provided)]),
    ("wasi:cli", "0.3", CLI_3),
    ("wasi:sockets", "0.3", &[("types", Network), ("ip-name-lookup", Network)]),
    ("wasi:http", "0.3", &[("types", Provided), ("client", Network)]),
];

const CLI: &[(&str, Policy)] = &[
    ("environment", Provided),
    ("exit", Provided),
    ("stdin", Provided),
    ("stdout", Provided),
    ("stderr", Provided),
    ("terminal-input", Provided),
    ("terminal-output", Provided),
    ("terminal-stdin", Provided),
    ("terminal-stdout", Provided),
    ("terminal-stderr", Provided),
];

const CLI_3: &[(&str, Policy)] = &[
    ("types", Provided),
    ("environment", Provided),
    ("exit", Provided),
    ("stdin", Provided),
    ("stdout", Provided),
    ("stderr", Provided),
    ("terminal-input", Provided),
    ("terminal-output", Provided),
    ("terminal-stdin", Provided),
    ("terminal-stdout", Provided),
    ("terminal-stderr", Provided),
];

fn policy(import: &str) -> Option<Policy> {
    let (path, version) = import.split_once('@')?;
    let (package, interface) = path.split_once('/')?;
    let (_, _, interfaces) = KNOWN.iter().find(|(p, line, _)| *p == package && is_in(version, line))?;
    interfaces.iter().find(|(i, _)| *i == interface).map(|(_, policy)| *policy)
}

/// Whether a version belongs to a line such as `0.2`: a release of it, or the very version.
fn is_in(version: &str, line: &str) -> bool {
    let patch = |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit());
    version == line || version.strip_prefix(line).and_then(|v| v.strip_prefix('.')).is_some_and(patch)
}

/// What a module imports and how each is met under `grants`.
pub(crate) fn statuses<'a>(names: impl Iterator<Item = &'a str>, grants: &Grants) -> Vec<Import> {
    let denied = grants.network.is_empty();
    names
        .map(|name| {
            let denied = denied && policy(name) == Some(Network);
            let status = if denied { ImportStatus::Denied } else { ImportStatus::Provided };
            Import { name: name.to_owned(), status }
        })
        .collect()
}

/// Refuses, before anything is compiled, what is not a component or imports what is not known.
pub(crate) fn check(wasm: &[u8]) -> Result<(), ModuleError> {
    if !wasm.starts_with(MAGIC) {
        return Err(ModuleError::Invalid("it does not begin as WebAssembly does".into()));
    }
    let invalid = |e: wasmparser::BinaryReaderError| ModuleError::Invalid(e.to_string());
    let mut depth = 0;
    let mut unknown = Vec::new();
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(invalid)? {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => return Err(core_module(wasm)),
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(imports) if depth == 0 => {
                for import in imports {
                    let name = import.map_err(invalid)?.name.name;
                    if policy(name).is_none() {
                        unknown.push(name.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    match unknown.iter().find(|name| name.starts_with("wasi:nn/")) {
        Some(name) => Err(ModuleError::UnknownImport(format!("{name}; this gateway serves {NN}"))),
        None if unknown.is_empty() => Ok(()),
        None => Err(ModuleError::UnknownImport(unknown.join(", "))),
    }
}

/// Whether a component needs an engine that knows tasks: it imports or exports an interface of WASI 0.3, some of which have
/// asynchronous functions, or is valid with tasks alone.
pub(crate) fn knows_tasks(wasm: &[u8]) -> bool {
    let valid = |features| Validator::new_with_features(features).validate_all(wasm).is_ok();
    let (with, without) = (WasmFeatures::all(), WasmFeatures::all().difference(WasmFeatures::CM_ASYNC));
    names_tasks(wasm) || !valid(without) && valid(with)
}

/// Whether a component imports or exports an interface of WASI 0.3.
fn names_tasks(wasm: &[u8]) -> bool {
    let is_3 = |name: &str| name.split_once('@').is_some_and(|(_, version)| is_in(version, "0.3"));
    top_level(wasm).any(|payload| match payload {
        Payload::ComponentImportSection(imports) => imports.into_iter().flatten().any(|import| is_3(import.name.name)),
        Payload::ComponentExportSection(exports) => exports.into_iter().flatten().any(|export| is_3(export.name.name)),
        _ => false,
    })
}

/// The name under which a component exports an initialiser, if it does. `wasm` has passed [`check`].
pub(crate) fn initialiser(wasm: &[u8]) -> Option<String> {
    let ours = |name: &&str| name.split_once('@').is_some_and(|(path, line)| path == INITIALISER && is_in(line, "0.1"));
    top_level(wasm).find_map(|payload| {
        let Payload::ComponentExportSection(exports) = payload else { return None };
        exports.into_iter().flatten().map(|export| export.name.name).find(ours).map(str::to_owned)
    })
}

/// What a component itself consists of, without what is in its modules and components.
fn top_level(wasm: &[u8]) -> impl Iterator<Item = Payload<'_>> {
    let mut depth = 0;
    Parser::new(0).parse_all(wasm).map_while(Result::ok).filter(move |payload| {
        match payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            _ => return depth == 0,
        }
        false
    })
}

/// The error for a core module, which names the ABI that it speaks.
fn core_module(wasm: &[u8]) -> ModuleError {
    let mut spoken: Vec<String> = Vec::new();
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = match payload {
            Ok(payload) => payload,
            Err(error) => return ModuleError::Invalid(error.to_string()),
        };
        let Payload::ImportSection(imports) = payload else { continue };
        for import in imports.into_imports().flatten() {
            if !spoken.iter().any(|module| module == import.module) {
                spoken.push(import.module.to_owned());
            }
        }
    }
    ModuleError::CoreModule(if spoken.iter().any(|module| module == OLD_NN) {
        format!("it speaks `{OLD_NN}`, the older ABI of wasi-nn; build it as a component for {NN}")
    } else if spoken.is_empty() {
        format!("it imports nothing; build it as a component of the world windrose:model/model or for {NN}")
    } else {
        format!("it imports {}; build it as a component (target wasm32-wasip2)", spoken.join(", "))
    })
}

/// What a component that exports these can be served as, and under which version of WASI.
pub(crate) fn kind(exports: &[&str]) -> Result<(ModuleKind, u8), ModuleError> {
    const SERVED: [(&str, &str, ModuleKind, u8); 5] = [
        ("windrose:model/handler", "0.1", ModuleKind::Model, 2),
        ("wasi:http/handler", "0.3", ModuleKind::Http, 3),
        ("wasi:http/incoming-handler", "0.2", ModuleKind::Http, 2),
        ("wasi:cli/run", "0.3", ModuleKind::Command, 3),
        ("wasi:cli/run", "0.2", ModuleKind::Command, 2),
    ];
    let exported = |path: &str, line: &str| {
        exports.iter().any(|e| e.split_once('@').is_some_and(|(p, version)| p == path && is_in(version, line)))
    };
    for (path, line, kind, wasi) in SERVED {
        if exported(path, line) {
            return Ok((kind, wasi));
        }
    }
    let found = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
    Err(ModuleError::NoWorld(format!(
        "a module exports windrose:model/handler, wasi:http/incoming-handler, wasi:http/handler or wasi:cli/run; this \
         one exports {found}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_a_line() {
        assert!(is_in("0.2.6", "0.2") && is_in("0.2.12", "0.2"));
        assert!(is_in("0.2.0-rc-2024-10-28", "0.2.0-rc-2024-10-28"));
        for other in ["0.20.1", "0.3.0", "0.2.0-rc-2023-11-10", "0.2.", "0.2.1x"] {
            assert!(!is_in(other, "0.2"), "{other}");
        }
    }

    #[test]
    fn a_network_is_denied_until_it_is_granted() {
        let names = ["wasi:http/outgoing-handler@0.2.4", "wasi:http/types@0.2.4", "wasi:sockets/tcp@0.2.0"];
        let statuses =
            |grants: &Grants| statuses(names.into_iter(), grants).iter().map(|i| i.status).collect::<Vec<_>>();
        use ImportStatus::{Denied, Provided};
        assert_eq!(statuses(&Grants::default()), [Denied, Provided, Denied]);
        let grants = Grants { network: vec!["example.com".into()], load: false };
        assert_eq!(statuses(&grants), [Provided, Provided, Provided]);
    }

    #[test]
    fn the_worlds_that_are_served() {
        assert_eq!(kind(&["wasi:cli/run@0.2.3"]).unwrap(), (ModuleKind::Command, 2));
        assert_eq!(kind(&["wasi:http/handler@0.3.0"]).unwrap(), (ModuleKind::Http, 3));
        assert_eq!(kind(&["wasi:cli/run@0.2.0", "windrose:model/handler@0.1.0"]).unwrap(), (ModuleKind::Model, 2));
        let error = kind(&["acme:thing/other@1.0.0"]).unwrap_err().to_string();
        assert!(error.contains("acme:thing/other@1.0.0"), "{error}");
    }
}
