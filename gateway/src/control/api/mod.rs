//! The control API: its routes, its OpenAPI page, and the token that every call needs.

pub mod explain;
mod handlers;
mod serve;
pub mod types;
mod view;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::deployer::Who;
use super::registry::{ChangeError, Registry};
use super::token::Token;
use crate::admit::tenants::Door;
use crate::error::{Error, Kind};
use crate::fleet::Fleet;
use crate::http::identity::Identity;
use crate::telemetry::Telemetry;
use types::{ErrorBody, MissingBlob};

/// Bodies of one deployer that are read at the same time.
const BODIES: usize = 4;

/// What the API stands on.
pub struct Api {
    /// What is deployed.
    pub registry: Arc<Registry>,
    /// What the operator's calls show.
    pub token: Token,
    /// For `/metrics`.
    pub telemetry: Arc<Telemetry>,
    /// The largest upload, bytes.
    pub max_blob: u64,
    /// Where the data listener is.
    pub data: SocketAddr,
    /// The other sites, where there are any.
    pub fleet: Option<Arc<Fleet>>,
    /// The tenants, where not everybody may call.
    pub door: Option<Arc<Door>>,
    /// When the process started.
    pub started: Instant,
    /// Bodies of deployers that are being read.
    pub uploads: Uploads,
}

/// How many bodies are read of each deployer at the same time: each holds some megabytes for as long as it takes.
#[derive(Default)]
pub struct Uploads(Mutex<HashMap<String, Arc<Semaphore>>>);

impl Uploads {
    /// Waits for the turn of one more body. The operator's have no bound.
    async fn turn(&self, who: &Who) -> Option<OwnedSemaphorePermit> {
        let places = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Names are those of the file of deployers.
            all.entry(who.uploader()?.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(BODIES))).clone()
        };
        places.acquire_owned().await.ok()
    }
}

impl Api {
    fn who(&self, token: &str) -> Option<Who> {
        if self.token.is(token) {
            return Some(Who::Operator);
        }
        self.registry.deployers.as_ref()?.of_key(token).map(Who::Deployer)
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Windrose control API",
        description = "Deploy, inspect and remove models. Every call needs the token of the gateway's data folder, or a \
            deployer's key, which is for that deployer's models only: 403 for anything else.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    modifiers(&BearerToken),
    security(("token" = []))
)]
struct Page;

struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

fn router() -> (Router<Arc<Api>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Page::openapi())
        .routes(routes!(handlers::head_blob, handlers::put_blob))
        .routes(routes!(handlers::list_models))
        .routes(routes!(handlers::get_model, handlers::delete_model))
        .routes(routes!(handlers::get_version, handlers::put_version, handlers::delete_version))
        .routes(routes!(handlers::validate))
        .routes(routes!(explain::explain))
        .routes(routes!(handlers::status))
        .routes(routes!(handlers::metrics))
        .routes(routes!(handlers::openapi))
        .split_for_parts()
}

/// The OpenAPI page, as JSON for people and programs.
pub fn openapi_json() -> String {
    let mut page = router().1.to_pretty_json().unwrap_or_default();
    page.push('\n');
    page
}

/// Serves the API until `shutdown`, then lets running calls end.
pub async fn serve(listener: TcpListener, api: Arc<Api>, shutdown: CancellationToken) {
    let app = router()
        .0
        .fallback(async || fail(Error::new(Kind::NotFound, "there is no such path")))
        .method_not_allowed_fallback(async || fail(Error::new(Kind::MethodNotAllowed, "not with this method")))
        .layer(middleware::from_fn_with_state(api.clone(), authorize))
        .layer(middleware::from_fn(identify))
        .with_state(api);
    serve::serve(listener, app, serve::LIMITS, &shutdown).await;
}

/// Who calls.
#[derive(Clone, Copy)]
struct Caller {
    address: SocketAddr,
}

/// Puts the id and the trace context of a call on its answer, as the data listener does.
async fn identify(request: Request, next: Next) -> Response {
    let identity = Identity::of(request.headers());
    let mut response = next.run(request).await;
    identity.stamp(response.headers_mut());
    response
}

/// Refuses every call without the token or a deployer's key, before anything of it is read.
async fn authorize(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let header = request.headers().get(http::header::AUTHORIZATION);
    let (scheme, token) = header.and_then(|value| value.to_str().ok()?.split_once(' ')).unwrap_or_default();
    let who = if scheme.eq_ignore_ascii_case("bearer") { api.who(token.trim()) } else { None };
    if let Some(who) = who {
        request.extensions_mut().insert(who);
        return next.run(request).await;
    }
    let message =
        "this call needs `Authorization: Bearer` with the token of the gateway's data folder, or a deployer's key";
    let mut refused = fail(Error::new(Kind::Unauthorized, message));
    refused.headers_mut().insert(http::header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
    refused
}

fn error_of(error: &ChangeError) -> Error {
    let kind = match error {
        ChangeError::Invalid(_) | ChangeError::Refused(_) => Kind::InvalidInput,
        ChangeError::Missing(_) => Kind::Conflict,
        ChangeError::Forbidden(_) => Kind::Forbidden,
        ChangeError::NotFound(_) => Kind::NotFound,
        ChangeError::Busy => Kind::Overloaded,
        ChangeError::Host(_) => Kind::Internal,
    };
    Error::new(kind, error.to_string())
}

/// The body of an error.
fn error_body(error: &ChangeError) -> ErrorBody {
    let missing = match error {
        ChangeError::Missing(missing) => {
            let blob =
                |(field, digest): &(String, String)| MissingBlob { field: field.clone(), digest: digest.clone() };
            missing.iter().map(blob).collect()
        }
        _ => Vec::new(),
    };
    ErrorBody { missing, ..body(&error_of(error)) }
}

fn body(error: &Error) -> ErrorBody {
    ErrorBody { error: error.message.clone(), kind: error.kind.as_str().to_string(), missing: Vec::new() }
}

fn fail(error: Error) -> Response {
    if error.kind == Kind::Internal {
        tracing::error!(message = error.message, "a control call failed");
    }
    (error.kind.status(), axum::Json(body(&error))).into_response()
}

fn fail_change(error: &ChangeError) -> Response {
    if let ChangeError::Host(message) = error {
        tracing::error!(message, "a control call failed");
    }
    (error_of(error).kind.status(), axum::Json(error_body(error))).into_response()
}
