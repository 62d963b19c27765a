//! `windrose new`.

use std::path::{Path, PathBuf};

use super::Failure;
use crate::control::manifest::check_name;

/// The template's files.
const FILES: [(&str, &str); 6] = [
    ("Cargo.toml", include_str!("../../../guest-sdk/template/Cargo.toml.tmpl")),
    ("src/lib.rs", include_str!("../../../guest-sdk/template/src/lib.rs")),
    ("windrose.toml", include_str!("../../../guest-sdk/template/windrose.toml")),
    ("README.md", include_str!("../../../guest-sdk/template/README.md")),
    ("test-input.json", include_str!("../../../guest-sdk/template/test-input.json")),
    ("test-output.json", include_str!("../../../guest-sdk/template/test-output.json")),
];

/// Make a folder with a new module in Rust, its manifest and a test.
#[derive(clap::Args)]
#[command(after_help = "Example: windrose new my-model")]
pub struct New {
    /// The folder to make; its last part is the model's name.
    #[arg(value_name = "NAME")]
    folder: PathBuf,
}

impl New {
    /// Writes the files.
    pub fn run(self) -> Result<(), Failure> {
        let name = self.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        check_name(&name).map_err(|error| Failure::usage(error.to_string()))?;
        if name.contains('.') || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(Failure::usage(format!("`{name}` is also a Rust package's name: a letter first, and no dots")));
        }
        if self.folder.exists() {
            return Err(Failure::usage(format!("{} is there already", self.folder.display())));
        }
        let sdk = match find_sdk() {
            Some(path) => format!("{{ path = {:?} }}", path.display().to_string()),
            None => "\"0.1\"".to_string(),
        };
        for (path, text) in FILES {
            let text =
                text.replace("{{name}}", &name).replace("{{file}}", &name.replace('-', "_")).replace("{{sdk}}", &sdk);
            write(&self.folder.join(path), &text)?;
        }
        println!("{} is ready: its README.md says how to build, deploy and ask it.", self.folder.display());
        Ok(())
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::refused(format!("{}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    std::fs::write(path, text).map_err(failed)
}

/// The SDK of the checkout that this program was built in, or that it is called in.
fn find_sdk() -> Option<PathBuf> {
    let places = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let sdk = |above: &Path| Some(above.join("guest-sdk")).filter(|sdk| sdk.join("Cargo.toml").is_file());
    places.iter().flatten().find_map(|place| place.ancestors().find_map(sdk))
}
