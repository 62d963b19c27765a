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
        let path = format!("/v1/explain/{}?{}", self.model, query.join("&"));
        let answer: ExplainAnswer = self.gateway.client()?.call(Method::GET, &path).await?;
        if self.gateway.json {
            return print_json(&answer);
        }
        show(&answer);
        Ok(())
    }
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
        println!("  {:>10.1} ms ago  {:6} {chosen}", decision.ago_ms, decision.purpose);
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
}
