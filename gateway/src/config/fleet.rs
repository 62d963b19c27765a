//! The fleet file: the sites, what they cost and whose law holds there; and what models may be told. As written, then as
//! true.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use windrose_route::{Digest, Hedging, Jurisdiction, Policy, Price, Rules, Site, Source};

use super::ConfigError;
use super::explain::read_toml;
use super::units::Span;

/// The most sites of one fleet.
const MAX_SITES: usize = 1024;

/// The round trip that is assumed to a site for which the file names none.
const DISTANCE: Duration = Duration::from_millis(20);

/// What the table `fleet` of the configuration says, where it names a file.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// The fleet file.
    pub file: PathBuf,
    /// Which of its sites this gateway is.
    pub site: String,
    /// Where peers connect; `None` where nobody does.
    pub listen: Option<std::net::SocketAddr>,
    /// This site's certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The certificates of the authority that peers' certificates are signed by, PEM.
    pub authority: PathBuf,
    /// Bytes of a request's and of an answer's body that are held.
    pub hold: usize,
    /// Law by configuration: nothing but these, where there is a list.
    pub allow: Option<Vec<Jurisdiction>>,
    /// Law by configuration: none of these.
    pub deny: Vec<Jurisdiction>,
}

/// A fleet file, validated.
#[derive(Clone, Debug)]
pub struct FleetFile {
    /// The sites, in the file's order.
    pub sites: Vec<FleetSite>,
    /// What the file says about models, by name.
    pub models: HashMap<String, FleetModel>,
}

/// One site.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetSite {
    /// What choosing needs to know.
    pub site: Arc<Site>,
    /// `host:port` of its peer listener, or of a foreign server.
    pub addresses: Vec<String>,
    /// The round trip to it, as far as the file knows.
    pub distance: Duration,
    /// Its share under the policy `weights`.
    pub weight: u32,
    /// What a foreign server is told; `None` for a gateway.
    pub foreign: Option<Foreign>,
}

/// A server that is no Windrose gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreign {
    /// The models that it may be asked for.
    pub models: HashSet<String>,
    /// The authority of its certificate; `None` for plain text, which the file has to ask for.
    pub authority: Option<PathBuf>,
    /// Whether its models may run twice for one request.
    pub repeatable: bool,
}

/// What the file says about one model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FleetModel {
    /// The digests that are allowed; `None` where the file leaves that to what is deployed.
    pub digests: Option<Vec<Digest>>,
    /// How a replica is chosen.
    pub policy: Policy,
    /// Where a second try may go.
    pub hedging: Hedging,
    /// Law: nothing but these, where there is a list.
    pub allow: Option<Vec<Jurisdiction>>,
    /// Law: none of these.
    pub deny: Vec<Jurisdiction>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFile {
    #[serde(default)]
    site: Vec<WrittenSite>,
    #[serde(default)]
    model: BTreeMap<String, WrittenModel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSite {
    name: String,
    cloud: Option<String>,
    region: Option<String>,
    jurisdiction: Option<String>,
    #[serde(default)]
    addresses: Vec<String>,
    distance: Option<Span>,
    #[serde(default = "one")]
    weight: u32,
    #[serde(default)]
    price: WrittenPrice,
    #[serde(default)]
    kind: SiteKind,
    #[serde(default)]
    plain: bool,
    authority: Option<PathBuf>,
    #[serde(default)]
    models: Vec<String>,
    #[serde(default)]
    repeatable: bool,
}

fn one() -> u32 {
    1
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenPrice {
    engine_second: f64,
    request: f64,
    gigabyte: f64,
}

#[derive(Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SiteKind {
    #[default]
    Windrose,
    Oip,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenModel {
    digests: Option<Vec<String>>,
    policy: WrittenPolicy,
    p99: Option<Span>,
    hedge: WrittenHedge,
    allow: Option<Vec<String>>,
    deny: Vec<String>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WrittenPolicy {
    #[default]
    Fastest,
    Cheapest,
    LocalFirst,
    Weights,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenHedge {
    #[default]
    Withdrawable,
    Never,
    Anywhere,
}

impl FleetConfig {
    /// What the settings say about data that enters here.
    pub fn bind(&self, rules: Rules) -> Rules {
        rules.and(Source::Gateway, self.allow.clone(), self.deny.clone())
    }
}

impl FleetFile {
    /// Reads and validates the file, in which `here` has to be a site.
    ///
    /// # Errors
    /// Names the file and the entry.
    pub fn load(path: &Path, here: &str) -> Result<FleetFile, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| ConfigError(format!("fleet.file: {name}: {e}")))?;
        FleetFile::parse(&name, &text, here)
    }

    /// [`FleetFile::load`] of a text; relative paths in it start at the folder of `name`.
    ///
    /// # Errors
    /// Names the file and the entry.
    pub fn parse(name: &str, text: &str, here: &str) -> Result<FleetFile, ConfigError> {
        let written: WrittenFile = read_toml(name, text).map_err(ConfigError)?;
        let wrong = |message: String| ConfigError(format!("{name}: {message}"));
        if written.site.len() > MAX_SITES {
            return Err(wrong(format!("at most {MAX_SITES} sites")));
        }
        let folder = Path::new(name).parent().unwrap_or(Path::new("."));
        let mut sites = Vec::new();
        let mut names = HashSet::new();
        for site in written.site {
            if !names.insert(site.name.clone()) {
                return Err(wrong(format!("site `{}` is there twice", site.name)));
            }
            let label = site.name.clone();
            sites.push(site.check(folder).map_err(|message| wrong(format!("site `{label}`: {message}")))?);
        }
        match sites.iter().find(|site| &*site.site.name == here) {
            None => return Err(wrong(format!("there is no site `{here}`, which fleet.site names"))),
            Some(site) if site.foreign.is_some() => {
                return Err(wrong(format!("site `{here}`, which fleet.site names, is of kind `oip`")));
            }
            Some(_) => {}
        }
        let mut models = HashMap::new();
        for (model, written) in written.model {
            let checked = written.check().map_err(|message| wrong(format!("model `{model}`: {message}")))?;
            models.insert(model, checked);
        }
        Ok(FleetFile { sites, models })
    }

    /// The site of this name.
    pub fn site(&self, name: &str) -> Option<&FleetSite> {
        self.sites.iter().find(|site| &*site.site.name == name)
    }
}

impl WrittenSite {
    fn check(self, folder: &Path) -> Result<FleetSite, String> {
        check_site_name(&self.name)?;
        let (cloud, region) = self.name.split_once('/').unwrap_or((&self.name, ""));
        let (cloud, region) = (self.cloud.as_deref().unwrap_or(cloud), self.region.as_deref().unwrap_or(region));
        let jurisdiction = self.jurisdiction.as_deref().map(Jurisdiction::new).transpose();
        let price = Price {
            engine_second: self.price.engine_second,
            request: self.price.request,
            gigabyte: self.price.gigabyte,
        };
        if [price.engine_second, price.request, price.gigabyte].iter().any(|p| !p.is_finite() || *p < 0.0) {
            return Err("price: must be numbers that are not negative".into());
        }
        if let Some(bad) = self.addresses.iter().find(|address| !is_address(address)) {
            return Err(format!("addresses: `{bad}` is not host:port"));
        }
        let foreign = match self.kind {
            SiteKind::Oip => Some(Foreign {
                authority: transport(self.plain, self.authority.map(|path| folder.join(path)))?,
                models: self.models.into_iter().collect(),
                repeatable: self.repeatable,
            }),
            SiteKind::Windrose if self.plain || self.authority.is_some() => {
                return Err("`plain` and `authority` are for kind `oip`: gateways always use certificates".into());
            }
            SiteKind::Windrose if self.repeatable || !self.models.is_empty() => {
                return Err("`models` and `repeatable` are for kind `oip`: a gateway says what it serves".into());
            }
            SiteKind::Windrose => None,
        };
        if foreign.as_ref().is_some_and(|foreign| foreign.models.is_empty() || self.addresses.is_empty()) {
            return Err("a server of kind `oip` needs `addresses` and `models`".into());
        }
        let site = Site {
            name: self.name.as_str().into(),
            cloud: cloud.into(),
            region: region.into(),
            jurisdiction: jurisdiction.map_err(|e| format!("jurisdiction: {e}"))?,
            price,
        };
        let distance = self.distance.map_or(DISTANCE, |span| span.0);
        Ok(FleetSite { site: Arc::new(site), addresses: self.addresses, distance, weight: self.weight, foreign })
    }
}

/// How a foreign server is reached. Plain text is only spoken where the file says so.
fn transport(plain: bool, authority: Option<PathBuf>) -> Result<Option<PathBuf>, String> {
    match (plain, authority) {
        (true, None) => Ok(None),
        (false, Some(authority)) => Ok(Some(authority)),
        (true, Some(_)) => Err("`plain = true` and `authority` exclude each other".into()),
        (false, None) => Err("name the `authority` of its certificate, or say `plain = true`".into()),
    }
}

impl FleetModel {
    /// Whether the file says where the model's data may be.
    pub fn is_bound(&self) -> bool {
        self.allow.is_some() || !self.deny.is_empty()
    }
}

impl WrittenModel {
    fn check(self) -> Result<FleetModel, String> {
        let digest = |text: &String| parse_digest(text).ok_or_else(|| format!("digests: `{text}` is no sha256 in hex"));
        let digests = self.digests.map(|list| list.iter().map(digest).collect::<Result<Vec<_>, _>>()).transpose()?;
        let policy = match (self.policy, self.p99) {
            (WrittenPolicy::Cheapest, Some(p99)) => {
                Policy::Cheapest { p99: u64::try_from(p99.0.as_nanos()).unwrap_or(u64::MAX) }
            }
            (WrittenPolicy::Cheapest, None) => return Err("policy `cheapest` needs `p99`".into()),
            (_, Some(_)) => return Err("`p99` is for policy `cheapest`".into()),
            (WrittenPolicy::Fastest, None) => Policy::Fastest,
            (WrittenPolicy::LocalFirst, None) => Policy::LocalFirst,
            (WrittenPolicy::Weights, None) => Policy::Weights,
        };
        let hedging = match self.hedge {
            WrittenHedge::Withdrawable => Hedging::Withdrawable,
            WrittenHedge::Never => Hedging::Never,
            WrittenHedge::Anywhere => Hedging::Anywhere,
        };
        let allow = self.allow.map(|list| jurisdictions(&list)).transpose().map_err(|e| format!("allow: {e}"))?;
        let deny = jurisdictions(&self.deny).map_err(|e| format!("deny: {e}"))?;
        Ok(FleetModel { digests, policy, hedging, allow, deny })
    }
}

/// Names of jurisdictions.
///
/// # Errors
/// Names the one that is none.
pub fn jurisdictions(names: &[String]) -> Result<Vec<Jurisdiction>, String> {
    names.iter().map(|name| Jurisdiction::new(name).map_err(|e| e.to_string())).collect()
}

/// Whether a site can have this name: words of `a-z 0-9 -`, joined by `/`, that together fit into a certificate.
///
/// # Errors
/// Says how a name looks.
pub fn check_site_name(name: &str) -> Result<(), String> {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let word =
        |w: &str| (1..=63).contains(&w.len()) && w.bytes().all(known) && !w.starts_with('-') && !w.ends_with('-');
    if name.len() <= 200 && name.split('/').all(word) {
        return Ok(());
    }
    Err(format!("`{name}` is no name of a site: words of a-z 0-9 and -, joined by /"))
}

/// A sha256 from 64 hexadecimal digits.
pub fn parse_digest(text: &str) -> Option<Digest> {
    let mut digest = [0; 32];
    let bytes = text.as_bytes();
    if bytes.len() != 64 {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(bytes.chunks_exact(2)) {
        let nibble = |b: u8| char::from(b).to_digit(16).map(|n| n as u8);
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(digest)
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = r#"
        [[site]]
        name = "aws/eu-west-1"
        jurisdiction = "EU"
        addresses = ["10.0.0.1:8002"]
        distance = "30ms"
        price = { engine_second = 0.5 }
        [[site]]
        name = "lab/triton"
        kind = "oip"
        plain = true
        addresses = ["127.0.0.1:9000"]
        models = ["iris"]
        [model.iris]
        policy = "cheapest"
        p99 = "200ms"
        deny = ["us"]
    "#;

    #[test]
    fn a_file_is_read() {
        let file = FleetFile::parse("f.toml", TWO, "aws/eu-west-1").unwrap();
        let site = file.site("aws/eu-west-1").unwrap();
        assert_eq!((&*site.site.cloud, &*site.site.region), ("aws", "eu-west-1"));
        assert_eq!(site.site.jurisdiction, Some(Jurisdiction::new("eu").unwrap()));
        assert_eq!(site.distance, Duration::from_millis(30));
        let foreign = file.site("lab/triton").unwrap().foreign.as_ref().unwrap();
        assert!(foreign.models.contains("iris") && foreign.authority.is_none() && !foreign.repeatable);
        assert_eq!(file.models["iris"].policy, Policy::Cheapest { p99: 200_000_000 });
    }

    #[test]
    fn what_is_wrong_is_named() {
        let site = |more: &str| format!("[[site]]\nname = \"a\"\n[[site]]\nname = \"b\"\n{more}\n");
        let cases = [
            (site("[[site]]\nname = \"b\""), "site `b` is there twice"),
            (site("addresses = [\"host\"]"), "`host` is not host:port"),
            (site("jurisdiction = \"e u\""), "site `b`: jurisdiction"),
            (site("kind = \"oip\"\naddresses = [\"h:1\"]\nmodels = [\"m\"]"), "or say `plain = true`"),
            (site("kind = \"oip\"\nplain = true\nmodels = [\"m\"]"), "needs `addresses` and `models`"),
            (site("plain = true"), "gateways always use certificates"),
            (site("price = { request = -1.0 }"), "price: "),
            (site("colour = 1"), "unknown field `colour`"),
            (site("[model.m]\npolicy = \"cheapest\""), "needs `p99`"),
            (site("[model.m]\ndigests = [\"00\"]"), "no sha256"),
            ("[[site]]\nname = \"A\"".to_owned(), "no name of a site"),
            ("[[site]]\nname = \"c\"".to_owned(), "there is no site `a`"),
        ];
        for (text, expected) in cases {
            let error = FleetFile::parse("f.toml", &text, "a").unwrap_err().to_string();
            assert!(error.starts_with("f.toml") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn digests_are_hex() {
        assert_eq!(parse_digest(&"0f".repeat(32)), Some([15; 32]));
        assert_eq!(parse_digest(&"0g".repeat(32)), None);
        assert_eq!(parse_digest("0f"), None);
    }
}
