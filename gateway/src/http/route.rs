//! Paths of the data plane.

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// `/v2`
    Server,
    /// `/v2/health/live`
    Live,
    /// `/v2/health/ready`
    Ready,
    /// `/v2/models/{model}[/versions/{version}]`
    Metadata(Target<'a>),
    /// `…/ready`
    ModelReady(Target<'a>),
    /// `…/stats`, and `/v2/models/stats` for all models
    Statistics(Option<Target<'a>>),
    /// `…/infer`
    Infer(Target<'a>),
    /// `/models/{model}[/versions/{version}]/{rest}`: `rest` is what the guest sees, with its leading `/` where there
    /// is one.
    Guest(Target<'a>, &'a str),
}

/// A model, and a version where the path names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    pub model: &'a str,
    pub version: Option<&'a str>,
}

impl<'a> Route<'a> {
    /// What `path` names; a trailing `/` does not matter, except to a guest.
    pub fn parse(path: &'a str) -> Option<Route<'a>> {
        if let Some(rest) = path.strip_prefix("/models/") {
            let (target, rest) = Target::parse(rest)?;
            return Some(Route::Guest(target, rest));
        }
        match path.strip_suffix('/').unwrap_or(path) {
            "/v2" => return Some(Route::Server),
            "/v2/health/live" => return Some(Route::Live),
            "/v2/health/ready" => return Some(Route::Ready),
            "/v2/models/stats" => return Some(Route::Statistics(None)),
            _ => {}
        }
        let (target, rest) = Target::parse(path.strip_prefix("/v2/models/")?)?;
        match rest.strip_suffix('/').unwrap_or(rest) {
            "" => Some(Route::Metadata(target)),
            "/ready" => Some(Route::ModelReady(target)),
            "/stats" => Some(Route::Statistics(Some(target))),
            "/infer" => Some(Route::Infer(target)),
            _ => None,
        }
    }

    /// The model of a call, or of a read of metadata or readiness.
    pub fn target(&self) -> Option<Target<'a>> {
        match *self {
            Route::Metadata(target) | Route::ModelReady(target) => Some(target),
            Route::Infer(target) | Route::Guest(target, _) => Some(target),
            Route::Server | Route::Live | Route::Ready | Route::Statistics(_) => None,
        }
    }

    /// The guest's part of the path.
    pub fn rest(&self) -> Option<&'a str> {
        match self {
            Route::Guest(_, rest) => Some(rest),
            _ => None,
        }
    }

    /// The methods that the path takes, as `Allow` lists them; `None` for any.
    pub fn methods(&self) -> Option<&'static str> {
        match self {
            Route::Infer(_) => Some("POST"),
            Route::Guest(..) => None,
            _ => Some("GET, HEAD"),
        }
    }
}

impl<'a> Target<'a> {
    /// `{model}[/versions/{version}]`, and the rest of the path.
    fn parse(path: &'a str) -> Option<(Target<'a>, &'a str)> {
        let (model, rest) = segment(path)?;
        let Some((version, rest)) = rest.strip_prefix("/versions/").and_then(segment) else {
            return Some((Target { model, version: None }, rest));
        };
        Some((Target { model, version: Some(version) }, rest))
    }
}

/// The first segment, which is not empty, and what follows with its `/`.
fn segment(path: &str) -> Option<(&str, &str)> {
    let end = path.find('/').unwrap_or(path.len());
    (end > 0).then(|| path.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_routes() {
        let m = Target { model: "m", version: None };
        let v = Target { model: "m", version: Some("1.2") };
        let cases = [
            ("/v2", Some(Route::Server)),
            ("/v2/", Some(Route::Server)),
            ("/v2/health/live", Some(Route::Live)),
            ("/v2/health/ready/", Some(Route::Ready)),
            ("/v2/models/m", Some(Route::Metadata(m))),
            ("/v2/models/m/", Some(Route::Metadata(m))),
            ("/v2/models/m/versions/1.2", Some(Route::Metadata(v))),
            ("/v2/models/m/ready", Some(Route::ModelReady(m))),
            ("/v2/models/m/versions/1.2/ready", Some(Route::ModelReady(v))),
            ("/v2/models/m/stats", Some(Route::Statistics(Some(m)))),
            ("/v2/models/m/versions/1.2/stats", Some(Route::Statistics(Some(v)))),
            ("/v2/models/stats", Some(Route::Statistics(None))),
            ("/v2/models/m/infer", Some(Route::Infer(m))),
            ("/v2/models/m/versions/1.2/infer", Some(Route::Infer(v))),
            ("/models/m", Some(Route::Guest(m, ""))),
            ("/models/m/", Some(Route::Guest(m, "/"))),
            ("/models/m/a/b/", Some(Route::Guest(m, "/a/b/"))),
            ("/models/m/versions/1.2", Some(Route::Guest(v, ""))),
            ("/models/m/versions/1.2/a", Some(Route::Guest(v, "/a"))),
            ("/models/m/versions/", Some(Route::Guest(m, "/versions/"))),
            ("/models/", None),
            ("/v2/models", None),
            ("/v2/models//infer", None),
            ("/v2/models/m/other", None),
            ("/v2/models/m/versions/1/other", None),
            ("/", None),
            ("", None),
            ("*", None),
        ];
        for (path, expected) in cases {
            assert_eq!(Route::parse(path), expected, "{path}");
        }
    }
}
