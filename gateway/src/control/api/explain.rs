//! Why a request goes where it goes.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use windrose_route::{Call, Considered, Decision, Jurisdiction, Nanos, Purpose, Router, Rules, SECOND, Source};

use super::types::ErrorBody;
use super::{Api, fail, fail_change};
use crate::admit::tenants::everybody;
use crate::config::tenants::Tenant;
use crate::control::deployer::Who;
use crate::control::store::hex;
use crate::error::{Error, Kind};
use crate::fleet::{Replicated, Table, To};

/// A request that might come.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Hypothetical {
    /// The version; the highest when not given.
    version: Option<String>,
    /// Jurisdictions that the request allows, with commas; any when not given.
    allow: Option<String>,
    /// Jurisdictions that the request denies, with commas.
    deny: Option<String>,
    /// The tenant whose request it is; everybody's when not given. Only the operator may name one.
    tenant: Option<String>,
    /// Whether the request asks for a verified digest.
    #[serde(default)]
    verified: bool,
    /// The id of a request that came: of the decisions that are kept, those about it.
    request: Option<String>,
}

/// What would happen to a request now, and what happened to the last ones.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ExplainAnswer {
    pub model: String,
    /// Empty where only foreign servers have the model.
    pub version: String,
    /// Whether it may run twice: retried, hedged.
    pub repeatable: bool,
    /// The site that would be asked; absent when none may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
    /// True when every healthy replica is out, and one would be asked all the same.
    pub last_resort: bool,
    /// Retries and hedges that the budgets allow at this moment.
    pub budgets: (f64, f64),
    pub candidates: Vec<CandidateView>,
    /// The decisions of late, the newest first; only those about one request, where one is named.
    pub decisions: Vec<DecisionView>,
}

/// One replica.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CandidateView {
    pub site: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jurisdiction: Option<String>,
    /// `here`, `peer` or `foreign`.
    pub kind: String,
    /// sha256 of what runs there, hex; `unverified` for a foreign server.
    pub digest: String,
    /// The latency to expect, milliseconds; absent when it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_ms: Option<f64>,
    /// Why it may not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What one request is thought to cost there.
    pub price: f64,
    /// This gateway's requests that are there now, and how many may be.
    pub in_flight: u32,
    pub limit: u32,
    /// The 99th percentile of its answers, milliseconds, where there are enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// How long a second try would wait for it, milliseconds.
    pub hedge_after_ms: f64,
}

/// A decision that was taken.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DecisionView {
    /// How long ago, milliseconds.
    pub ago_ms: f64,
    /// `first`, `retry` or `hedge`.
    pub purpose: String,
    /// The request's id, which its answer has as `x-request-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Whose it is; only the operator is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The site that was asked; absent when none could be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
    pub last_resort: bool,
    /// How many replicas there were; the first of them follow.
    pub candidates: u32,
    pub considered: Vec<ConsideredView>,
}

/// One replica in a decision.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ConsideredView {
    pub site: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

fn millis(nanos: f64) -> f64 {
    (nanos / 1e3).round() / 1e3
}

/// Where a request for a model would go and why, and where the last ones went.
#[utoipa::path(get, path = "/v1/explain/{model}", params(("model" = String, Path), Hypothetical),
    responses((status = 200, body = ExplainAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn explain(
    State(api): State<Arc<Api>>,
    Extension(who): Extension<Who>,
    Path(model): Path<String>,
    Query(asked): Query<Hypothetical>,
) -> Response {
    // Who the tenants are is the operator's: a deployer neither hears their names nor finds them out.
    let tenants = if asked.tenant.is_some() { who.may_all() } else { Ok(()) };
    if let Err(error) = who.may(&model).and(tenants) {
        return fail_change(&error);
    }
    let not_found = |message: String| fail(Error::new(Kind::NotFound, message));
    let Some(fleet) = &api.fleet else {
        return not_found("this gateway has no fleet: every request runs here".into());
    };
    let table = fleet.table();
    let Some(found) = table.find(&model, asked.version.as_deref()) else {
        return not_found(format!("no site is known to serve model `{model}` in that version"));
    };
    let tenant = match &asked.tenant {
        None => everybody(),
        Some(name) => match api.door.as_ref().and_then(|door| door.named(name)) {
            Some(tenant) => tenant,
            None => return not_found(format!("no tenant `{name}` has a key here")),
        },
    };
    match answer((&table, found), &tenant, &asked, &who) {
        Ok(answer) => Json(answer).into_response(),
        Err(message) => fail(Error::new(Kind::InvalidInput, message)),
    }
}

fn answer(
    (table, found): (&Table, &Arc<Replicated>),
    tenant: &Tenant,
    asked: &Hypothetical,
    who: &Who,
) -> Result<ExplainAnswer, String> {
    let list = |text: &str| {
        let names = text.split(',').filter(|name| !name.trim().is_empty());
        names.map(|name| Jurisdiction::new(name).map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>()
    };
    let allow = asked.allow.as_deref().map(list).transpose()?;
    let deny = asked.deny.as_deref().map(list).transpose()?.unwrap_or_default();
    let version = asked.version.as_deref();
    let rules = Rules::clone(found.law(version)).and(Source::Tenant, tenant.allow.clone(), tenant.deny.clone());
    let rules = rules.and(Source::Request, allow, deny);
    let found = table.meant(found, version, &rules);
    let now = found.replicas.now();
    let call = Call {
        rules: Arc::new(rules),
        repeatable: found.repeatable,
        hedging: found.hedging,
        verified: asked.verified,
        ..Call::until(now.saturating_add(30 * SECOND))
    };
    let about = |made: &&Decision| asked.request.is_none() || made.request.as_deref() == asked.request.as_deref();
    let router = found.replicas.lock();
    let explained = router.explain(&call, now);
    let candidates: Vec<CandidateView> = explained.candidates.iter().map(|c| candidate(found, c)).collect();
    let decisions = router.decisions().filter(about).map(|made| decision(&router, made, who, now)).collect();
    Ok(ExplainAnswer {
        model: found.model.clone(),
        version: found.version.clone(),
        repeatable: found.repeatable,
        chosen: explained.chosen.map(|at| candidates[at].site.clone()),
        last_resort: explained.last_resort,
        budgets: router.budgets(),
        candidates,
        decisions,
    })
}

fn candidate(found: &Replicated, candidate: &windrose_route::Candidate) -> CandidateView {
    let place = found.places.get(&*candidate.site);
    let kind = place.map_or("gone", |place| match (&place.to, place.digest) {
        (To::Here(_), _) => "here",
        (To::There(_), Some(_)) => "peer",
        (To::There(_), None) => "foreign",
    });
    let digest = place.and_then(|place| place.digest).map(|digest| hex(&digest));
    CandidateView {
        site: candidate.site.to_string(),
        jurisdiction: place.and_then(|p| p.site.jurisdiction.as_ref()).map(|at| at.as_str().to_owned()),
        kind: kind.into(),
        digest: digest.unwrap_or_else(|| "unverified".into()),
        score_ms: candidate.verdict.ok().map(millis),
        refused: candidate.verdict.err().map(|refusal| refusal.to_string()),
        price: candidate.price,
        in_flight: candidate.in_flight,
        limit: candidate.limit,
        p99_ms: candidate.p99.map(|p99| millis(p99 as f64)),
        hedge_after_ms: millis(candidate.hedge_delay as f64),
    }
}

fn decision(router: &Router, made: &Decision, who: &Who, now: Nanos) -> DecisionView {
    let site = |id| router.replica(id).map_or_else(|| "gone".to_owned(), |replica| replica.site.name.to_string());
    let considered = |considered: &Considered| ConsideredView {
        site: site(considered.replica),
        score_ms: considered.verdict.ok().map(millis),
        refused: considered.verdict.err().map(|refusal| refusal.to_string()),
    };
    let purpose = match made.purpose {
        Purpose::First => "first",
        Purpose::Retry => "retry",
        Purpose::Hedge => "hedge",
    };
    DecisionView {
        ago_ms: millis(now.saturating_sub(made.at) as f64),
        purpose: purpose.into(),
        request: made.request.as_deref().map(str::to_owned),
        tenant: made.tenant.as_deref().filter(|_| who.may_all().is_ok()).map(str::to_owned),
        chosen: made.chosen.map(site),
        last_resort: made.last_resort,
        candidates: made.candidates,
        considered: made.considered.iter().flatten().map(considered).collect(),
    }
}

#[cfg(test)]
mod tests {
    use windrose_engine::Isolation;
    use windrose_route::{Attempts, Random, Settings};

    use super::*;
    use crate::config::deployers::{Deployer, Names};

    #[test]
    fn only_the_operator_is_told_whose_a_request_was() {
        let mut router = Router::new(Settings::default(), Random::seeded(1));
        let call = Call { tenant: Some("secret".into()), request: Some("id".into()), ..Call::until(SECOND) };
        Attempts::new(call).poll(&mut router, 0);
        let made = router.decisions().next().unwrap();
        let told = |who: &Who| decision(&router, made, who, 0);
        assert_eq!(told(&Who::Operator).tenant.as_deref(), Some("secret"));
        let models = vec![Names::parse("*").unwrap()];
        let deployer = Deployer { name: "acme".into(), models, isolation: Isolation::Process, grants: true };
        let told = told(&Who::Deployer(Arc::new(deployer)));
        assert_eq!((told.request.as_deref(), told.tenant.as_deref()), (Some("id"), None));
        assert!(!serde_json::to_string(&told).unwrap().contains("secret"));
    }
}
