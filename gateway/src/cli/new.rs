//! `windrose new`.

use std::path::{Path, PathBuf};

use super::Failure;
use crate::control::manifest::check_new_name;

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
    /// The folder guest-sdk of a checkout of Windrose [default: that of the checkout that this program is in, or is called in].
    #[arg(long, value_name = "FOLDER")]
    sdk: Option<PathBuf>,
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
        check_new_name(&name).map_err(|error| Failure::usage(error.to_string()))?;
        let is_package = !name.contains('.') && name.starts_with(|c: char| c.is_ascii_lowercase());
        if self.lang == Language::Rust && !is_package {
            return Err(Failure::usage(format!("`{name}` is also a Rust package's name: a letter first, and no dots")));
        }
        if self.folder.exists() {
            return Err(Failure::usage(format!("{} is there already", self.folder.display())));
        }
        let shown = self.sdk()?.display().to_string();
        let dependency = format!("{{ path = {shown:?} }}");
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

    /// Where the SDK is. It is in no registry: without a checkout no module could be built.
    fn sdk(&self) -> Result<PathBuf, Failure> {
        let none = "modules are built with the folder guest-sdk of a checkout of Windrose";
        match &self.sdk {
            Some(sdk) if is_sdk(sdk) => {
                std::path::absolute(sdk).map_err(|error| Failure::usage(format!("{}: {error}", sdk.display())))
            }
            Some(sdk) => Err(Failure::usage(format!("{} is not it: {none}", sdk.display()))),
            None => find_sdk().ok_or_else(|| {
                Failure::usage(format!("{none}, and there is none around here: name one with --sdk FOLDER"))
            }),
        }
    }
}

fn is_sdk(folder: &Path) -> bool {
    folder.join("build.py").is_file() && folder.join("Cargo.toml").is_file()
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
    let sdk = |above: &Path| Some(above.join("guest-sdk")).filter(|sdk| is_sdk(sdk));
    places.iter().flatten().find_map(|place| place.ancestors().find_map(sdk))
}
