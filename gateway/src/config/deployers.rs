//! The file of deployers: who may deploy beside the operator, which models, and how far what they deploy is trusted. As
//! written, then as true.

use std::sync::Arc;

use serde::Deserialize;
use windrose_engine::Isolation;

use super::keys::{Holder, check_name};

/// What the log calls whoever has the gateway's own token. No deployer has this name.
pub const OPERATOR: &str = "operator";

/// Who may deploy some models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployer {
    /// As the log and the API name it.
    pub name: Arc<str>,
    /// The models that are its own.
    pub models: Vec<Names>,
    /// The least isolation of its graphs.
    pub isolation: Isolation,
    /// Whether its models may be granted what the operator's ceiling allows; else nothing.
    pub grants: bool,
}

/// Names of models: one, or all that begin alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// This one.
    One(String),
    /// Those that begin with this.
    Beginning(String),
}

impl Names {
    /// From `name` or `beginning*`.
    ///
    /// # Errors
    /// Says how it is written.
    pub fn parse(written: &str) -> Result<Names, String> {
        let (text, names): (&str, fn(String) -> Names) = match written.strip_suffix('*') {
            Some(beginning) => (beginning, Names::Beginning),
            None => (written, Names::One),
        };
        let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        match text.bytes().all(known) && !written.is_empty() {
            true => Ok(names(text.to_owned())),
            false => Err(format!("`{written}` is no name of models: `name`, or `beginning*` for all that begin so")),
        }
    }

    fn has(&self, model: &str) -> bool {
        match self {
            Names::One(name) => name == model,
            Names::Beginning(beginning) => model.starts_with(beginning),
        }
    }
}

impl std::fmt::Display for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Names::One(name) => f.write_str(name),
            Names::Beginning(beginning) => write!(f, "{beginning}*"),
        }
    }
}

impl Deployer {
    /// Whether a model of this name is one of its own.
    pub fn owns(&self, model: &str) -> bool {
        self.models.iter().any(|names| names.has(model))
    }
}

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenFile {
    #[serde(default)]
    deployer: Vec<WrittenDeployer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenDeployer {
    name: String,
    #[serde(default)]
    keys: Vec<String>,
    models: Vec<String>,
    isolation: Option<Isolation>,
    #[serde(default)]
    grants: bool,
}

impl Holder for Deployer {
    const WHAT: &'static str = "deployer";
    const SETTING: &'static str = "control.deployers";

    type Written = WrittenFile;

    fn check(written: WrittenFile) -> Result<Vec<(Deployer, Vec<String>)>, String> {
        written.deployer.into_iter().map(WrittenDeployer::check).collect()
    }

    fn name(&self) -> &Arc<str> {
        &self.name
    }
}

impl WrittenDeployer {
    fn check(self) -> Result<(Deployer, Vec<String>), String> {
        check_deployer_name(&self.name)?;
        let wrong = |why: String| format!("deployer `{}`: models: {why}", self.name);
        let models =
            self.models.iter().map(|written| Names::parse(written)).collect::<Result<_, _>>().map_err(wrong)?;
        let isolation = self.isolation.unwrap_or(Isolation::Child);
        Ok((Deployer { name: self.name.as_str().into(), models, isolation, grants: self.grants }, self.keys))
    }
}

/// Whether a deployer can have this name.
///
/// # Errors
/// Says how a name looks.
pub fn check_deployer_name(name: &str) -> Result<(), String> {
    check_name(Deployer::WHAT, name, OPERATOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::Keys;
    use crate::control::store::hex_digest;

    fn read(text: &str) -> Result<Keys<Deployer>, String> {
        Keys::read("deployers.toml", text)
    }

    #[test]
    fn a_deployer_has_its_models_and_no_others() {
        let key = hex_digest(b"one");
        let text = format!("[[deployer]]\nname = \"acme\"\nkeys = [\"{key}\"]\nmodels = [\"acme-*\", \"iris\"]\n");
        let deployers = read(&text).unwrap();
        let acme = deployers.of_key("one").unwrap();
        let owned = ["acme-", "acme-1", "iris"].map(|model| acme.owns(model));
        let others = ["acme", "iris2", "ir", "", "x-acme-1"].map(|model| acme.owns(model));
        assert!(owned == [true; 3] && others == [false; 5], "{owned:?} {others:?}");
        // What is not said is the strictest.
        assert!(acme.isolation == Isolation::Child && !acme.grants);
        let trusted = text + "isolation = \"process\"\ngrants = true\n";
        let deployers = read(&trusted).unwrap();
        let acme = deployers.of_key("one").unwrap();
        assert!(acme.isolation == Isolation::Process && acme.grants);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let deployer = |name: &str, more: &str| format!("[[deployer]]\nname = \"{name}\"\n{more}\n");
        let cases = [
            (deployer("a", ""), "missing field `models`"),
            (deployer("operator", "models = []"), "and not `operator`"),
            (deployer("a", "models = [\"\"]"), "deployer `a`: models: `` is no name of models"),
            (deployer("a", "models = [\"a*b\"]"), "`a*b` is no name of models"),
            (deployer("a", "models = [\"a/b\"]"), "`a/b` is no name of models"),
            (deployer("a", "models = []\nisolation = \"none\""), "unknown variant `none`"),
            (deployer("a", "models = []\nkeys = [\"one\"]"), "deployer `a`: keys: not the sha256 of a key"),
        ];
        for (text, expected) in cases {
            let error = read(&text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let all = read(&deployer("a", &format!("models = [\"*\"]\nkeys = [\"{}\"]", hex_digest(b"k")))).unwrap();
        assert!(all.of_key("k").unwrap().owns("anything"));
    }
}
