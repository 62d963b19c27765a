//! One function per route.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;

use super::types::{
    BlobAnswer, DeleteAnswer, DeployAnswer, EngineView, ErrorBody, ModelView, ModelsAnswer, ProgressLine, StatusAnswer,
    ValidateAnswer, VersionView,
};
use super::{Api, Caller, error_body, fail, fail_change, openapi_json, view};
use crate::control::deployer::Who;
use crate::control::log::Actor;
use crate::control::manifest::{Invalid, Manifest, is_digest};
use crate::control::prepare::Event;
use crate::control::registry::{ChangeError, Entry, Standing};
use crate::control::store::StoreError;
use crate::error::{Error, Kind};

type Shared = State<Arc<Api>>;
type By = Extension<Who>;

/// The largest manifest, bytes.
const MAX_MANIFEST: usize = 4 << 20;
/// Progress events that wait for a slow reader; further ones are dropped.
const PROGRESS: usize = 64;

/// The person or program that makes a change.
fn actor(who: &Who, from: Caller, headers: &HeaderMap) -> Actor {
    let agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("");
    Actor { name: who.name().into(), from: from.address.to_string(), agent: agent.chars().take(200).collect() }
}

fn bad_digest(digest: &str) -> Response {
    fail(Error::new(Kind::InvalidInput, format!("`{digest}` is no sha256 in 64 lower-case hexadecimal digits")))
}

fn store_error(error: StoreError) -> Response {
    let kind = match error {
        StoreError::Digest { .. } | StoreError::Upload(_) => Kind::InvalidInput,
        StoreError::TooLarge { .. } => Kind::TooLarge,
        _ => Kind::Internal,
    };
    fail(Error::new(kind, error.to_string()))
}

/// Whether a file is there.
#[utoipa::path(head, path = "/v1/blobs/{sha256}", 
    params(("sha256" = String, Path, description = "sha256, hex", pattern = "^[0-9a-f]{64}$")),
    responses((status = 200, description = "It is there."), (status = 400, description = "This is no digest."),
        (status = 404, description = "It is not.")))]
pub async fn head_blob(State(api): Shared, Extension(who): By, Path(digest): Path<String>) -> Response {
    if !is_digest(&digest) {
        return StatusCode::BAD_REQUEST.into_response();
    }
    match api.registry.store.has_blob(&digest, who.uploader()).await {
        Ok(true) => StatusCode::OK.into_response(),
        Ok(false) => Kind::NotFound.status().into_response(),
        Err(error) => store_error(error),
    }
}

/// Uploads a file. It counts only when its content has the sha256 of the path; one that is there is not read again.
#[utoipa::path(put, path = "/v1/blobs/{sha256}", 
    params(("sha256" = String, Path, description = "sha256, hex", pattern = "^[0-9a-f]{64}$")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, description = "It is there.", body = BlobAnswer),
        (status = 400, description = "The content is not what the digest says.", body = ErrorBody),
        (status = 413, description = "It is too large.", body = ErrorBody)))]
pub async fn put_blob(
    State(api): Shared,
    Extension(who): By,
    Path(digest): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    if !is_digest(&digest) {
        return bad_digest(&digest);
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > api.max_blob) {
        return store_error(StoreError::TooLarge { limit: api.max_blob });
    }
    let _turn = api.uploads.turn(&who).await;
    let (store, body) = (&api.registry.store, body.into_data_stream());
    let put = match who.uploader() {
        None => store.put_blob(&digest, body, api.max_blob).await,
        Some(uploader) => store.put_blob_of(uploader, &digest, body, api.max_blob).await,
    };
    match put {
        Ok(new) => Json(BlobAnswer { digest, new }).into_response(),
        Err(error) => store_error(error),
    }
}

/// What is deployed; to a deployer, what is its own of that.
#[utoipa::path(get, path = "/v1/models", responses((status = 200, body = ModelsAnswer)))]
pub async fn list_models(State(api): Shared, Extension(who): By) -> Json<ModelsAnswer> {
    Json(ModelsAnswer { models: view::models(&own_entries(&api, &who).await) })
}

async fn own_entries(api: &Api, who: &Who) -> Vec<Entry> {
    let mut entries = api.registry.entries().await;
    entries.retain(|entry| who.owns(&entry.name));
    entries
}

/// One model and its versions.
#[utoipa::path(get, path = "/v1/models/{name}", params(("name" = String, Path)),
    responses((status = 200, body = ModelView), (status = 404, body = ErrorBody)))]
pub async fn get_model(State(api): Shared, Extension(who): By, Path(name): Path<String>) -> Response {
    if let Err(error) = who.may(&name) {
        return fail_change(&error);
    }
    let models = view::models(&api.registry.entries().await);
    match models.into_iter().find(|model| model.name == name) {
        Some(model) => Json(model).into_response(),
        None => fail(Error::new(Kind::NotFound, format!("there is no model `{name}`"))),
    }
}

/// Removes a model with all of its versions. Calls that are running finish.
#[utoipa::path(delete, path = "/v1/models/{name}", params(("name" = String, Path)),
    responses((status = 200, body = DeleteAnswer), (status = 404, body = ErrorBody)))]
pub async fn delete_model(
    State(api): Shared,
    Extension(who): By,
    ConnectInfo(from): ConnectInfo<Caller>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let actor = actor(&who, from, &headers);
    delete(api, name, None, (who, actor)).await
}

/// One version: its manifest, what it imports and was granted, its limits, graphs and engines.
#[utoipa::path(get, path = "/v1/models/{name}/versions/{version}",
    params(("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = VersionView), (status = 404, body = ErrorBody)))]
pub async fn get_version(
    State(api): Shared,
    Extension(who): By,
    Path((name, version)): Path<(String, String)>,
) -> Response {
    if let Err(error) = who.may(&name) {
        return fail_change(&error);
    }
    match api.registry.entry(&name, &version).await {
        Some(entry) => Json(view::version(&entry)).into_response(),
        None => fail(Error::new(Kind::NotFound, format!("there is no version `{version}` of model `{name}`"))),
    }
}

/// Removes one version. Calls that are running finish.
#[utoipa::path(delete, path = "/v1/models/{name}/versions/{version}",
    params(("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = DeleteAnswer), (status = 404, body = ErrorBody)))]
pub async fn delete_version(
    State(api): Shared,
    Extension(who): By,
    ConnectInfo(from): ConnectInfo<Caller>,
    Path((name, version)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let actor = actor(&who, from, &headers);
    delete(api, name, Some(version), (who, actor)).await
}

/// In a task of its own: a caller that goes away does not leave a change half made.
async fn delete(api: Arc<Api>, name: String, version: Option<String>, (who, actor): (Who, Actor)) -> Response {
    let task = tokio::spawn(async move { api.registry.delete(&name, version.as_deref(), &who, actor).await });
    match joined(task.await) {
        Ok(revision) => Json(DeleteAnswer { revision }).into_response(),
        Err(error) => fail_change(&error),
    }
}

/// Deploys one version. It goes live once its module compiled, its graphs loaded and its self-test passed; until then,
/// and when anything fails, whatever was there stays. With `Accept: application/x-ndjson` the answer is a line of
/// progress for each stage, and the result, or the error, in the last line.
#[utoipa::path(put, path = "/v1/models/{name}/versions/{version}",
    params(("name" = String, Path), ("version" = String, Path)), request_body = Manifest,
    responses((status = 200, description = "It is live.", content(
            (DeployAnswer = "application/json"), (ProgressLine<DeployAnswer> = "application/x-ndjson"))),
        (status = 400, description = "The manifest is wrong, or the preparation refused it.", body = ErrorBody),
        (status = 409, description = "Files must be uploaded first.", body = ErrorBody),
        (status = 413, description = "The manifest is too large.", body = ErrorBody),
        (status = 429, description = "Too many deployments wait.", body = ErrorBody)))]
pub async fn put_version(
    State(api): Shared,
    Extension(who): By,
    ConnectInfo(from): ConnectInfo<Caller>,
    Path((name, version)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let manifest = match read_manifest(&api, &who, body).await {
        Ok(manifest) => manifest,
        Err(refused) => return refused,
    };
    for (field, written, path) in [("name", &manifest.name, &name), ("version", &manifest.version, &version)] {
        if written != path {
            let message = format!("the manifest says `{written}` and the path `{path}`");
            return fail_change(&Invalid { field: field.into(), message }.into());
        }
    }
    let actor = actor(&who, from, &headers);
    let (progress, events) = mpsc::channel(PROGRESS);
    let task = tokio::spawn(async move {
        let deployed = api.registry.deploy(manifest, &who, actor, progress).await?;
        let (revision, changed, preparation) = (deployed.revision, deployed.changed, deployed.preparation);
        Ok(DeployAnswer { name, version, revision, changed, preparation })
    });
    answer(&headers, events, task).await
}

/// Does everything that deploying does, but for going live.
#[utoipa::path(post, path = "/v1/validate", request_body = Manifest,
    responses((status = 200, description = "It would go live.", content(
            (ValidateAnswer = "application/json"), (ProgressLine<ValidateAnswer> = "application/x-ndjson"))),
        (status = 400, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 429, body = ErrorBody)))]
pub async fn validate(State(api): Shared, Extension(who): By, headers: HeaderMap, body: Body) -> Response {
    let manifest = match read_manifest(&api, &who, body).await {
        Ok(manifest) => manifest,
        Err(refused) => return refused,
    };
    let (progress, events) = mpsc::channel(PROGRESS);
    let task = tokio::spawn(async move {
        let prepared = api.registry.validate(&manifest, &who, progress).await?;
        Ok(view::validated(prepared, &api.registry.loader.granted(&manifest.grants, who.trust())))
    });
    answer(&headers, events, task).await
}

/// How the gateway stands; of models, to a deployer, its own.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = StatusAnswer)))]
pub async fn status(State(api): Shared, Extension(who): By) -> Json<StatusAnswer> {
    let entries = own_entries(&api, &who).await;
    let count = |wanted: fn(&Standing) -> bool| entries.iter().filter(|entry| wanted(&entry.standing)).count();
    let models_ready = count(|standing| matches!(standing, Standing::Ready(_)));
    let engines = api.registry.loader.engines.available().iter().map(EngineView::from).collect();
    Json(StatusAnswer {
        version: env!("CARGO_PKG_VERSION").into(),
        ready: models_ready == entries.len(),
        revision: api.registry.revision().await,
        models_ready,
        models_loading: count(|standing| matches!(standing, Standing::Loading)),
        models_failed: count(|standing| matches!(standing, Standing::Failed(_))),
        engines,
        data: api.data.to_string(),
        uptime_seconds: api.started.elapsed().as_secs(),
    })
}

/// Metrics for Prometheus, for the operator only.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
pub async fn metrics(State(api): Shared, Extension(who): By) -> Response {
    if let Err(error) = who.may_all() {
        return fail_change(&error);
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], api.telemetry.encode()).into_response()
}

/// This page.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, body = serde_json::Value)))]
pub async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], openapi_json()).into_response()
}

async fn read_manifest(api: &Api, who: &Who, body: Body) -> Result<Manifest, Response> {
    let _turn = api.uploads.turn(who).await;
    let bytes = axum::body::to_bytes(body, MAX_MANIFEST).await.map_err(|error| {
        fail(Error::new(Kind::TooLarge, format!("manifest, of at most {MAX_MANIFEST} bytes: {error}")))
    })?;
    Manifest::from_json(&bytes).map_err(|error| fail_change(&error.into()))
}

type Task<T> = tokio::task::JoinHandle<Result<T, ChangeError>>;

fn joined<T>(result: Result<Result<T, ChangeError>, tokio::task::JoinError>) -> Result<T, ChangeError> {
    result.unwrap_or_else(|error| Err(ChangeError::Host(error.to_string())))
}

/// Progress and result as lines, or only the result.
async fn answer<T>(headers: &HeaderMap, events: mpsc::Receiver<Event>, task: Task<T>) -> Response
where
    T: Serialize + Send + 'static,
{
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    if !accept.contains("application/x-ndjson") {
        drop(events);
        return match joined(task.await) {
            Ok(result) => Json(result).into_response(),
            Err(error) => fail_change(&error),
        };
    }
    let lines = futures_util::stream::unfold(Some((events, task)), async |state| {
        let (mut events, task) = state?;
        Some(match events.recv().await {
            Some(event) => (line(&ProgressLine::<T>::Progress(event)), Some((events, task))),
            None => {
                let last = match joined(task.await) {
                    Ok(result) => ProgressLine::Result(result),
                    Err(error) => ProgressLine::Failed(error_body(&error)),
                };
                (line(&last), None)
            }
        })
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn line<T: Serialize>(line: &ProgressLine<T>) -> Result<Vec<u8>, std::io::Error> {
    let mut bytes = serde_json::to_vec(line).map_err(std::io::Error::other)?;
    bytes.push(b'\n');
    Ok(bytes)
}
