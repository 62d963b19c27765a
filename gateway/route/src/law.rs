//! The law of the data: where a request may go at all.

use std::fmt;

use thiserror::Error;

/// Bytes that a jurisdiction's name may have.
const MAX_NAME: usize = 64;

/// A place whose law holds, such as `eu`, `de` or `us-ca`. Names compare without regard to case, and as wholes: `eu`
/// does not contain `de`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Jurisdiction(Box<str>);

/// The name of a jurisdiction was not one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no jurisdiction: 1 to 64 ASCII letters, digits, '-', '_', '.' or '/'")]
pub struct NotAJurisdiction(String);

impl Jurisdiction {
    /// Reads a name; spaces around it do not count. Fails on anything but 1 to 64 ASCII letters, digits, `-`, `_`, `.`
    /// and `/`, so that a rule with a slip in it is refused, not ignored.
    pub fn new(name: &str) -> Result<Jurisdiction, NotAJurisdiction> {
        let trimmed = name.trim();
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
        if trimmed.is_empty() || trimmed.len() > MAX_NAME || !trimmed.bytes().all(known) {
            return Err(NotAJurisdiction(name.chars().take(MAX_NAME).collect()));
        }
        Ok(Jurisdiction(trimmed.to_ascii_lowercase().into()))
    }

    /// The name, in small letters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Jurisdiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who bound the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The model's manifest.
    Manifest,
    /// What the fleet file says about the model.
    Fleet,
    /// The settings of the gateway where the request entered.
    Gateway,
    /// The tenant's settings.
    Tenant,
    /// The request itself.
    Request,
}

impl Source {
    /// Every source, in the order of declaration.
    pub const ALL: [Source; 5] = [Source::Manifest, Source::Fleet, Source::Gateway, Source::Tenant, Source::Request];

    /// One word for rules that are written.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Manifest => "manifest",
            Source::Fleet => "fleet",
            Source::Gateway => "gateway",
            Source::Tenant => "tenant",
            Source::Request => "request",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Fleet => "fleet file",
            Source::Gateway => "gateway's settings",
            other => other.as_str(),
        })
    }
}

/// What one source says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layer {
    source: Source,
    /// Nothing but these, where there is a list. An empty list allows nothing.
    allow: Option<Vec<Jurisdiction>>,
    deny: Vec<Jurisdiction>,
}

/// Every rule that binds a request. A site must satisfy all of them, so the strictest wins and adding a layer never
/// permits more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    layers: Vec<Layer>,
}

/// The rule that a site would break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Breach {
    /// The site is not on this source's list of what is allowed.
    NotAllowed(Source),
    /// The site is on this source's list of what is denied.
    Denied(Source),
    /// This source binds the data and nobody knows whose law holds at the site.
    Unknown(Source),
    /// Sites that may bind the data have not been heard of.
    Unheard,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Breach::NotAllowed(source) => write!(f, "not allowed by the {source}"),
            Breach::Denied(source) => write!(f, "denied by the {source}"),
            Breach::Unknown(source) => write!(f, "bound by the {source}, and the jurisdiction is unknown"),
            Breach::Unheard => f.write_str("gateways that may bind the model have not been heard of"),
        }
    }
}

impl Rules {
    /// No rule: every site is lawful.
    pub fn none() -> Rules {
        Rules::default()
    }

    /// These rules and what `source` adds: `allow` permits nothing but its entries (an empty list nothing at all), `deny`
    /// forbids its entries. A layer that says nothing is not kept.
    pub fn and(mut self, source: Source, allow: Option<Vec<Jurisdiction>>, deny: Vec<Jurisdiction>) -> Rules {
        if allow.is_some() || !deny.is_empty() {
            self.layers.push(Layer { source, allow, deny });
        }
        self
    }

    /// Whether nothing is bound.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Whether data may go where `at` holds; `None` is a site of unknown jurisdiction, which no rule permits. Fails with
    /// the first rule that it would break.
    pub fn permit(&self, at: Option<&Jurisdiction>) -> Result<(), Breach> {
        self.layers.iter().try_for_each(|layer| layer.permit(at))
    }

    /// Each layer: its source, what it allows if it has a list, what it denies. For a request that travels on to a peer,
    /// which checks the rules again.
    pub fn layers(&self) -> impl Iterator<Item = (Source, Option<&[Jurisdiction]>, &[Jurisdiction])> {
        self.layers.iter().map(|layer| (layer.source, layer.allow.as_deref(), layer.deny.as_slice()))
    }
}

impl Layer {
    fn permit(&self, at: Option<&Jurisdiction>) -> Result<(), Breach> {
        let Some(at) = at else {
            return Err(Breach::Unknown(self.source));
        };
        if self.deny.contains(at) {
            return Err(Breach::Denied(self.source));
        }
        match &self.allow {
            Some(allow) if !allow.contains(at) => Err(Breach::NotAllowed(self.source)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(name: &str) -> Jurisdiction {
        Jurisdiction::new(name).unwrap()
    }

    #[test]
    fn names_are_read_strictly_and_compared_without_case() {
        assert_eq!(place(" EU "), place("eu"));
        assert_eq!(place("us-CA").as_str(), "us-ca");
        for bad in ["", " ", "e u", "ëu", "eu,us", "eu\n;", &"x".repeat(65)] {
            assert!(Jurisdiction::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn each_breach_names_its_source() {
        let rules = Rules::none()
            .and(Source::Manifest, Some(vec![place("eu"), place("ch")]), vec![])
            .and(Source::Fleet, None, vec![place("ch")])
            .and(Source::Request, None, vec![]);
        assert_eq!(rules.permit(Some(&place("eu"))), Ok(()));
        assert_eq!(rules.permit(Some(&place("us"))), Err(Breach::NotAllowed(Source::Manifest)));
        assert_eq!(rules.permit(Some(&place("ch"))), Err(Breach::Denied(Source::Fleet)));
        assert_eq!(rules.permit(None), Err(Breach::Unknown(Source::Manifest)));
        assert_eq!(rules.layers().count(), 2);
        let said = Source::ALL.map(|source| Breach::Denied(source).to_string());
        let names = ["manifest", "fleet file", "gateway's settings", "tenant", "request"];
        assert_eq!(said, names.map(|name| format!("denied by the {name}")));
        assert_eq!(Rules::none().permit(None), Ok(()));
        let nowhere = Rules::none().and(Source::Request, Some(vec![]), vec![]);
        assert_eq!(nowhere.permit(Some(&place("eu"))), Err(Breach::NotAllowed(Source::Request)));
    }

    fn layer() -> impl Strategy<Value = (Option<Vec<Jurisdiction>>, Vec<Jurisdiction>)> {
        let some = || prop::collection::vec(prop::sample::select(vec!["eu", "us", "ch", "in"]).prop_map(place), 0..4);
        (prop::option::of(some()), some())
    }

    proptest! {
        #[test]
        fn a_further_layer_never_permits_more(layers in prop::collection::vec(layer(), 1..4), at in "(eu|us|ch|in|br)?") {
            let at = (!at.is_empty()).then(|| place(&at));
            let sources = [Source::Manifest, Source::Tenant, Source::Request];
            let mut rules = Rules::none();
            let mut permitted = true;
            for ((allow, deny), source) in layers.into_iter().zip(sources) {
                let alone = Rules::none().and(source, allow.clone(), deny.clone()).permit(at.as_ref()).is_ok();
                rules = rules.and(source, allow, deny);
                permitted &= alone;
                prop_assert_eq!(rules.permit(at.as_ref()).is_ok(), permitted);
            }
        }
    }
}
