//! `windrose new`.

use std::path::{Path, PathBuf};

use super::Failure;
use crate::control::manifest::check_name;

/// A file of a template: its path, and its text with `{{name}}` and the like in it.
type File = (&'static str, &'static str);

/// A file of `guest-sdk/template`.
macro_rules! template {
    ($path:literal) => {
        include_str!(concat!("../../../guest-sdk/template/", $path))
    };
}

/// What every template has.
const COMMON: [File; 3] = [
    ("windrose.toml", template!("windrose.toml")),
    ("test-input.json", template!("test-input.json")),
    ("test-output.json", template!("test-output.json")),
];
const RUST: [File; 3] = [
    ("Cargo.toml", template!("rust/Cargo.toml.tmpl")),
    ("src/lib.rs", template!("rust/src/lib.rs")),
    ("README.md", template!("rust/README.md")),
];
const PYTHON: [File; 2] = [("app.py", template!("python/app.py")), ("README.md", template!("python/README.md"))];
const JS: [File; 3] = [
    ("app.js", template!("js/app.js")),
    ("package.json", template!("js/package.json")),
    ("README.md", template!("js/README.md")),
];

/// Make a folder with a new module, its manifest and a test.
#[derive(clap::Args)]
#[command(after_help = "Example: windrose new my-model --lang python")]
pub struct New {
    /// The folder to make; its last part is the model's name.
    #[arg(value_name = "NAME")]
    folder: PathBuf,
    /// The language to write it in.
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    lang: Language,
}

/// A language that has an SDK.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Language {
    Rust,
    Python,
    #[value(alias = "javascript")]
    Js,
}

impl Language {
    fn files(self) -> &'static [File] {
        match self {
            Language::Rust => &RUST,
            Language::Python => &PYTHON,
            Language::Js => &JS,
        }
    }
}

impl New {
    /// Writes the files.
    pub fn run(self) -> Result<(), Failure> {
        let name = self.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        check_name(&name).map_err(|error| Failure::usage(error.to_string()))?;
        let is_package = !name.contains('.') && name.starts_with(|c: char| c.is_ascii_lowercase());
        if self.lang == Language::Rust && !is_package {
            return Err(Failure::usage(format!("`{name}` is also a Rust package's name: a letter first, and no dots")));
        }
        if self.folder.exists() {
            return Err(Failure::usage(format!("{} is there already", self.folder.display())));
        }
        let sdk = find_sdk();
        let shown = sdk.as_ref().map_or("guest-sdk".into(), |sdk| sdk.display().to_string());
        let dependency = match &sdk {
            Some(path) => format!("{{ path = {:?} }}", path.display().to_string()),
            None => "\"0.1\"".to_string(),
        };
        let words = [
            ("{{name}}", &name),
            ("{{file}}", &name.replace('-', "_")),
            ("{{sdk}}", &shown),
            ("{{crate}}", &dependency),
        ];
        for (path, text) in COMMON.iter().chain(self.lang.files()) {
            let text = words.iter().fold(text.to_string(), |text, (word, value)| text.replace(word, value));
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
