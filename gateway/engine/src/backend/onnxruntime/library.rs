//! Finding the shared library, and knowing its version before it is initialised.

use std::cmp::Reverse;
use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};

use libloading::Library;
use ort::sys::OrtApiBase;

/// The oldest release that has the interface that we call.
const OLDEST: (u32, u32) = (1, ort::MINOR_VERSION);

/// Where a system keeps its libraries, first the places of those who install by hand.
const SYSTEM: [&str; 8] = [
    "/usr/local/lib",
    "/opt/onnxruntime/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/opt/homebrew/lib",
    "/opt/homebrew/opt/onnxruntime/lib",
];

/// The libraries in the folders given and then in the system's, the newest of a folder first.
pub(super) fn candidates(folders: &[PathBuf]) -> Vec<PathBuf> {
    let folders = folders.iter().map(PathBuf::as_path).chain(SYSTEM.iter().map(Path::new));
    folders.flat_map(in_folder).collect()
}

fn in_folder(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let named = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some((Reverse(release_in(&name)?), entry.path()))
    });
    let mut found: Vec<_> = named.collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// The release that a file's name tells, if it is the library's; the lowest where it tells none.
fn release_in(name: &str) -> Option<Vec<u32>> {
    let rest = name.strip_prefix("libonnxruntime")?;
    let release = match rest.strip_prefix(".so") {
        Some(release) => release,
        None => rest.strip_suffix(".dylib")?,
    };
    if release.is_empty() {
        return Some(Vec::new());
    }
    release.strip_prefix('.')?.split('.').map(|part| part.parse().ok()).collect()
}

/// Opens a library, for as long as the process lives, and returns what its entry point does.
///
/// # Errors
/// With what is wrong, without the path.
pub(super) fn base(path: &Path) -> Result<&'static OrtApiBase, String> {
    #[expect(unsafe_code, reason = "a shared library is opened")]
    // SAFETY: the operator named this file, or it lies in a folder of libraries, and is meant to be loaded and run.
    let library = unsafe { Library::new(path) }.map_err(|error| {
        tracing::warn!(%error, "the ONNX Runtime library does not load");
        "the ONNX Runtime library does not load".to_owned()
    })?;
    #[expect(unsafe_code, reason = "the library's entry point is called")]
    // SAFETY: ONNX Runtime has exported `OrtGetApiBase` with this type since its first release; it returns a static
    // structure. The library is open, and stays so.
    let base = unsafe {
        let entry = library.get::<unsafe extern "C" fn() -> *const OrtApiBase>(b"OrtGetApiBase\0");
        let base = entry.map_err(|_| not_one())?();
        base.as_ref().ok_or_else(not_one)?
    };
    // Some libraries do not survive being closed; this one is about to be used, or the process is starting.
    std::mem::forget(library);
    Ok(base)
}

/// The library's own version, if it is one that we can use. Calls nothing in it but the function that every release has
/// for this.
///
/// # Errors
/// With what is wrong.
pub(super) fn version(base: &'static OrtApiBase) -> Result<String, String> {
    #[expect(unsafe_code, reason = "ONNX Runtime is called through its C interface")]
    // SAFETY: the second member of a library's structure has returned a static C string since its first release.
    let version = unsafe {
        let version = (base.GetVersionString)();
        if version.is_null() {
            return Err(not_one());
        }
        CStr::from_ptr(version).to_string_lossy().into_owned()
    };
    check(&version).map(|()| version)
}

fn not_one() -> String {
    "the file is not an ONNX Runtime library".to_owned()
}

/// Major and minor number of a release.
pub(super) fn release(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    Some((parts.next()??, parts.next()??))
}

fn check(version: &str) -> Result<(), String> {
    let wanted = format!("at least {}.{} of the same generation is needed", OLDEST.0, OLDEST.1);
    match release(version) {
        Some((major, minor)) if major == OLDEST.0 && minor >= OLDEST.1 => Ok(()),
        Some((major, minor)) => Err(format!("ONNX Runtime {major}.{minor} cannot be used: {wanted}")),
        None => Err(format!("an ONNX Runtime that does not tell its version cannot be used: {wanted}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_folder_comes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = ["libonnxruntime.so", "libonnxruntime.so.1.9.0", "libonnxruntime.so.1.32.0", "libonnxruntime.so.1"];
        for name in
            names.iter().chain(&["libonnxruntime_providers_shared.so", "libonnxruntime.so.bak", "onnxruntime.py"])
        {
            fs::write(folder.path().join(name), "").expect("a file");
        }
        let missing = folder.path().join("missing");
        let found = candidates(&[missing, folder.path().to_owned()]);
        let found: Vec<_> = found.iter().filter_map(|p| p.strip_prefix(folder.path()).ok()?.to_str()).collect();
        assert_eq!(found, [names[2], names[1], names[3], names[0]]);
    }

    #[test]
    fn old_and_unknown_versions_are_refused() {
        assert_eq!(check("1.32.0"), Ok(()));
        assert_eq!(check(&format!("1.{}.0", ort::MINOR_VERSION)), Ok(()));
        for bad in ["1.10.0", "0.99.1", "2.0.0", "", "one", "1", "1.x"] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check("1.10.0").expect_err("old").contains("ONNX Runtime 1.10 cannot be used: at least 1.22"));
    }

    #[test]
    fn what_is_no_library_is_refused_without_its_path() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("libonnxruntime.so");
        fs::write(&path, "not a library").expect("a file");
        let error = base(&path).expect_err("no library");
        assert!(!error.contains(&*folder.path().to_string_lossy()), "{error}");
    }
}
