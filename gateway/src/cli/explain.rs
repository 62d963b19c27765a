//! `windrose explain`: where a request would go, and why.

use http::Method;

use super::{Failure, Gateway, print_json};
use crate::control::api::explain::ExplainAnswer;
use crate::control::manifest::check_name;

/// Show where a request for a model would go now and why, and where the last ones went.
#[derive(clap::Args)]
#[command(disable_version_flag = true)]
#[command(after_help = "Example: windrose explain iris --deny us")]
pub struct Explain {
    /// The model.
    model: String,
    /// The version [default: the highest].
    #[arg(long = "version", visible_alias = "model-version", value_name = "VERSION")]
    model_version: Option<String>,
    /// Jurisdictions that the request would allow, with commas.
    #[arg(long, value_name = "NAMES")]
    allow: Option<String>,
    /// Jurisdictions that the request would deny, with commas.
    #[arg(long, value_name = "NAMES")]
    deny: Option<String>,
    /// The tenant whose request it would be.
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// As if the request asked for a verified digest.
    #[arg(long)]
    verified: bool,
    /// Of the decisions that are kept only those about the request of this id, which its answer has as x-request-id.
    #[arg(long, value_name = "ID")]
    request: Option<String>,
    #[command(flatten)]
    gateway: Gateway,
}

impl Explain {
    /// Explains.
    ///
    /// # Errors
    /// When the gateway has no fleet or nobody serves the model.
    pub async fn run(self) -> Result<(), Failure> {
        check_name(&self.model).map_err(|error| Failure::usage(error.to_string()))?;
        let mut query = Vec::new();
        let words =
            [("version", &self.model_version), ("allow", &self.allow), ("deny", &self.deny), ("tenant", &self.tenant)];
        for (key, value) in words {
            if let Some(value) = value {
                if !value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./,".contains(&b)) {
                    return Err(Failure::usage(format!("--{key}: `{value}` is no list of names")));
                }
                query.push(format!("{key}={value}"));
            }
        }
        if self.verified {
            query.push("verified=true".into());
        }
        query.extend(self.request.as_deref().map(|id| format!("request={}", escaped(id))));
        let path = format!("/v1/explain/{}?{}", self.model, query.join("&"));
        let answer: ExplainAnswer = self.gateway.client()?.call(Method::GET, &path).await?;
        if self.gateway.json {
            return print_json(&answer);
        }
        show(&answer);
        if let Some(id) = self.request.filter(|_| answer.decisions.is_empty()) {
            println!("no decision about the request {id} is kept");
        }
        Ok(())
    }
}

/// A text as a part of a query.
fn escaped(text: &str) -> String {
    let byte = |b: u8| match b {
        b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'.' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    text.bytes().map(byte).collect()
}

fn show(answer: &ExplainAnswer) {
    let version = if answer.version.is_empty() { "of any version" } else { &answer.version };
    let repeatable = if answer.repeatable { "may be repeated" } else { "is sent once" };
    println!("{} {version}: a request {repeatable}", answer.model);
    match &answer.chosen {
        Some(site) if answer.last_resort => println!("goes to {site}, as a last resort"),
        Some(site) => println!("goes to {site}"),
        None => println!("goes nowhere"),
    }
    for candidate in &answer.candidates {
        let what = verdict(candidate.score_ms, candidate.refused.as_deref());
        let at = candidate.jurisdiction.as_deref().unwrap_or("unknown");
        println!("  {:24} {:8} {:10} {:5} in flight  {what}", candidate.site, candidate.kind, at, candidate.in_flight);
    }
    if !answer.decisions.is_empty() {
        println!("lately:");
    }
    for decision in &answer.decisions {
        let chosen = decision.chosen.as_deref().unwrap_or("nobody");
        let of =
            |name: &str, what: &Option<String>| what.as_ref().map_or(String::new(), |what| format!("  {name} {what}"));
        let whose = of("for", &decision.request) + &of("of", &decision.tenant);
        println!("  {:>10.1} ms ago  {:6} {chosen:24}{whose}", decision.ago_ms, decision.purpose);
        for one in decision.considered.iter().filter(|one| one.refused.is_some()) {
            println!("      {:24} {}", one.site, verdict(one.score_ms, one.refused.as_deref()));
        }
    }
}

fn verdict(score_ms: Option<f64>, refused: Option<&str>) -> String {
    match (score_ms, refused) {
        (_, Some(refused)) => format!("refused: {refused}"),
        (Some(score), None) => format!("expected {score:.3} ms"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_said_before_a_score() {
        assert_eq!(verdict(Some(1.5), None), "expected 1.500 ms");
        assert_eq!(verdict(None, Some("jurisdiction")), "refused: jurisdiction");
    }

    #[test]
    fn any_id_fits_a_query() {
        assert_eq!(escaped("a-1.b_"), "a-1.b_");
        assert_eq!(escaped("a&b=c%/é"), "a%26b%3Dc%25%2F%C3%A9");
    }
}
