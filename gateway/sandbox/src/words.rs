//! What guests have `wasi:http` keep on the host: fields, and the words of requests. Each is bounded alone, and a guest may
//! have thousands; so what is made of them is counted for one call, what it has dropped again included.

use http::HeaderMap;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::p2::bindings::http::types as http_2;
use wasmtime_wasi_http::p3::bindings::http::types as http_3;
use wasmtime_wasi_http::{FieldMap, WasiHttpView};

use crate::files::shadow;
use crate::state::State;
use crate::ticker::End;

/// Bytes of fields and words that one call may make, where its memory is not less: those of one answer and of as many requests
/// as it may send, each of 32 KiB.
const CALL: u64 = 16 << 20;
/// What a field takes beside its name and its value, bytes.
const FIELD: usize = 128;

/// How many bodies of one call are buffered as WASI's implementation would, two chunks of each; any further one only so
/// much at a time.
const BODIES: usize = 8;
const CHUNK: usize = 8 << 10;

/// What one call has had kept.
#[derive(Default)]
pub(crate) struct Words {
    bytes: u64,
    bodies: usize,
}

impl Words {
    /// Whether nothing was.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0 && self.bodies == 0
    }

    /// How much is written at a time to one more body, of which a call writes so much at a time unless it has many.
    pub(crate) fn chunk(&mut self, usual: usize) -> usize {
        self.bodies += 1;
        if self.bodies <= BODIES { usual } else { usual.min(CHUNK) }
    }
}

impl State {
    /// Counts bytes that the host is about to keep, or ends the call.
    fn keep_words(&mut self, bytes: usize) -> wasmtime::Result<()> {
        let most = CALL.min(self.program.limits.memory);
        let words = self.words();
        words.bytes = words.bytes.saturating_add(bytes as u64);
        if words.bytes > most {
            self.watch.end(End::Memory);
            wasmtime::bail!("more header fields than a call may make");
        }
        Ok(())
    }

    fn keep_field(&mut self, name: &str, values: &[Vec<u8>]) -> wasmtime::Result<()> {
        let values: usize = values.iter().map(|value| value.len() + FIELD).sum();
        self.keep_words(name.len() + FIELD + values)
    }

    fn keep_list(&mut self, fields: &[(String, Vec<u8>)]) -> wasmtime::Result<()> {
        let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len() + FIELD).sum();
        self.keep_words(bytes)
    }

    /// Counts the copy of fields: they are shared only until one of both changes.
    fn keep_copy(&mut self, fields: &Resource<FieldMap>) -> wasmtime::Result<()> {
        let fields: &HeaderMap = self.table.get(fields)?;
        let bytes = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD).sum();
        self.keep_words(bytes)
    }
}

type Fields = Resource<FieldMap>;
type List = Vec<(String, Vec<u8>)>;
type Values = Vec<Vec<u8>>;

/// Puts the count in front of everything in the linker that makes fields or words, of one version of WASI: its functions
/// do the rest.
macro_rules! link {
    ($(#[$about:meta])* $name:ident, $interface:literal, $types:ident, $request:ident, $host:ident, $called:literal) => {
        $(#[$about])*
        pub(crate) fn $name(linker: &mut Linker<State>) -> wasmtime::Result<()> {
            type Request = Resource<$types::$request>;
            shadow(linker, $interface, |types| {
                types.func_wrap("[static]fields.from-list", |mut store, (list,): (List,)| {
                    let state: &mut State = store.data_mut();
                    state.keep_list(&list)?;
                    let made = $types::HostFields::from_list(&mut state.http(), list);
                    Ok((told(made, |error| error.downcast())?,))
                })
            })?;
            shadow(linker, $interface, |types| {
                types.func_wrap("[method]fields.set", |mut store, (fields, name, values): (Fields, String, Values)| {
                    let state: &mut State = store.data_mut();
                    state.keep_field(&name, &values)?;
                    let set = $types::HostFields::set(&mut state.http(), fields, name, values);
                    Ok((told(set, |error| error.downcast())?,))
                })
            })?;
            shadow(linker, $interface, |types| {
                types.func_wrap("[method]fields.append", |mut store, (fields, name, value): (Fields, String, Vec<u8>)| {
                    let state: &mut State = store.data_mut();
                    state.keep_words(name.len() + value.len() + FIELD)?;
                    let appended = $types::HostFields::append(&mut state.http(), fields, name, value);
                    Ok((told(appended, |error| error.downcast())?,))
                })
            })?;
            shadow(linker, $interface, |types| {
                types.func_wrap("[method]fields.clone", |mut store, (fields,): (Fields,)| {
                    let state: &mut State = store.data_mut();
                    state.keep_copy(&fields)?;
                    Ok(($types::HostFields::clone(&mut state.http(), fields)?,))
                })
            })?;
            shadow(linker, $interface, |types| {
                let name = concat!("[method]", $called, ".set-method");
                types.func_wrap(name, |mut store, (request, method): (Request, $types::Method)| {
                    let state: &mut State = store.data_mut();
                    state.keep_words(if let $types::Method::Other(name) = &method { name.len() } else { 0 })?;
                    Ok(($types::$host::set_method(&mut state.http(), request, method)?,))
                })
            })?;
            shadow(linker, $interface, |types| {
                let name = concat!("[method]", $called, ".set-path-with-query");
                types.func_wrap(name, |mut store, (request, path): (Request, Option<String>)| {
                    let state: &mut State = store.data_mut();
                    state.keep_words(path.as_ref().map_or(0, String::len))?;
                    Ok(($types::$host::set_path_with_query(&mut state.http(), request, path)?,))
                })
            })?;
            shadow(linker, $interface, |types| {
                let name = concat!("[method]", $called, ".set-authority");
                types.func_wrap(name, |mut store, (request, authority): (Request, Option<String>)| {
                    let state: &mut State = store.data_mut();
                    state.keep_words(authority.as_ref().map_or(0, String::len))?;
                    Ok(($types::$host::set_authority(&mut state.http(), request, authority)?,))
                })
            })
        }
    };
}

link! {
    /// The count of WASI 0.2.
    link, "wasi:http/types@0.2.12", http_2, OutgoingRequest, HostOutgoingRequest, "outgoing-request"
}
link! {
    /// The count of WASI 0.3.
    link_3, "wasi:http/types@0.3.0", http_3, Request, HostRequest, "request"
}

/// What the guest is told, as WASI's implementation would: an error of its own, or the end of the call.
fn told<T, E, F>(result: Result<T, E>, told: impl FnOnce(E) -> wasmtime::Result<F>) -> wasmtime::Result<Result<T, F>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => told(error).map(Err),
    }
}
