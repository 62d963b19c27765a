use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn digest(c: char) -> String {
    c.to_string().repeat(64)
}

fn whole() -> Value {
    json!({
        "name": "ocr", "version": "2", "description": "text in pictures", "module": digest('a'),
        "graphs": {"detect": {"digest": digest('b'), "engine": "rten", "sessions": 2},
                   "read": {"digest": digest('c'), "batching": {"max_size": 8, "max_delay_us": 500}}},
        "weight": 3,
        "assets": {"tables/words.txt": digest('d')},
        "limits": {"memory": 1 << 20, "wall_ms": 1000},
        "grants": {"network": ["a.example:443"], "load": true},
        "command": {"args": ["-v"], "env": {"A": "b"}, "content_type": "text/plain"},
        "timeout": {"default_ms": 1000, "max_ms": 2000},
        "test": {"input": digest('e'), "output": digest('f'), "tolerance": 0.01, "method": "GET", "path": "/a?b=1"},
    })
}

fn read(value: &Value) -> Result<Manifest, Invalid> {
    Manifest::from_json(&serde_json::to_vec(value).unwrap())
}

#[test]
fn a_whole_manifest_survives_its_own_json() {
    let manifest = read(&whole()).unwrap();
    assert_eq!(manifest.graphs["detect"].options.sessions, Some(2));
    assert_eq!(Manifest::from_json(&manifest.to_json()).unwrap(), manifest);
    assert_eq!(manifest.blobs().len(), 6);
}

#[test]
fn a_tolerance_survives_to_its_last_digit() {
    let mut written = whole();
    written["test"]["tolerance"] = json!(1.333_333_333_333_333_6e73);
    let manifest = read(&written).unwrap();
    assert_eq!(Manifest::from_json(&manifest.to_json()).unwrap(), manifest);
}

#[test]
fn the_field_is_named() {
    let cases: &[(&str, Value, &str)] = &[
        ("/name", json!("Ocr"), "name: "),
        ("/name", json!(""), "name: "),
        ("/name", json!("../x"), "name: "),
        ("/version", json!("a/b"), "version: "),
        ("/module", json!("AB"), "module: "),
        ("/graphs/read", json!({"digest": digest('c'), "sesions": 1}), "graphs.read"),
        ("/graphs/read", json!({"digest": digest('c'), "sessions": 0}), "graphs.read.sessions: "),
        ("/graphs/read", json!({"digest": digest('c'), "engine": "best"}), "graphs.read"),
        ("/graphs/read", json!({"digest": digest('c'), "queue_wait_ms": 0}), "graphs.read.queue_wait_ms: "),
        ("/graphs/read", json!({"digest": digest('c'), "batching": "on"}), "graphs.read"),
        (
            "/graphs/read",
            json!({"digest": digest('c'), "batching": {"max_size": 0}}),
            "graphs.read.batching.max_size: ",
        ),
        (
            "/graphs/read",
            json!({"digest": digest('c'), "padding": {"axis": 0, "inputs": {"ids": 0}}}),
            "graphs.read.padding: ",
        ),
        ("/name", json!("stats"), "name: `stats` is taken"),
        ("/weight", json!(0), "weight: "),
        ("/assets", json!({"../etc/passwd": digest('d')}), "assets.../etc/passwd: "),
        ("/assets", json!({"/etc": digest('d')}), "assets./etc: "),
        ("/assets", json!({"a": digest('d'), "a/b": digest('d')}), "assets.a/b: `a` is an asset"),
        ("/limits", json!({"memory": -1}), "limits.memory: "),
        ("/limits", json!({"memory": 0}), "limits.memory: "),
        ("/limits", json!({"reuse": 0}), "limits.reuse: "),
        ("/limits", json!({"memry": 1}), "limits.memry: unknown field"),
        ("/grants", json!({"network": ["http://a.example/"]}), "grants.network: "),
        ("/grants", json!({"files": true}), "grants"),
        ("/timeout", json!({"default_ms": 3, "max_ms": 2}), "timeout.default_ms: "),
        ("/test", json!({"input": digest('e'), "tolerance": -1.0}), "test.tolerance: "),
        ("/test", json!({"input": digest('e'), "method": "get"}), "test.method: "),
        ("/test", json!({"input": digest('e'), "path": "a"}), "test.path: "),
        ("/command", json!({"content_type": "a\nb"}), "command.content_type: "),
        ("/command", json!({"env": {"A=B": "c"}}), "command.env.A=B: "),
    ];
    for (pointer, value, expected) in cases {
        let mut manifest = whole();
        *manifest.pointer_mut(pointer).unwrap() = value.clone();
        let error = read(&manifest).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{pointer} = {value}: {error}");
    }
    let mut surplus = whole();
    surplus["surprise"] = json!(1);
    assert!(read(&surplus).unwrap_err().to_string().contains("surprise"));
    let nameless = read(&json!({"": 1})).unwrap_err().to_string();
    assert!(nameless.starts_with("manifest: unknown field ``"), "{nameless}");
}

#[test]
fn what_is_no_manifest_is_said_in_words() {
    for (text, expected) in [
        ("{", "manifest: EOF while parsing an object at line 1 column 1"),
        ("", "manifest: EOF while parsing a value at line 1 column 0"),
        ("[]", "manifest: must be an object"),
        ("7", "manifest: must be an object"),
        ("{} {}", "manifest: missing field `name`"),
        (r#"{"limits": 7}"#, "limits: must be an object"),
        (r#"{"graphs": {"model": ["#, "graphs.model: "),
        (r#"{"graphs": {"model": 7}}"#, "graphs.model: must be an object"),
    ] {
        let error = Manifest::from_json(text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
        assert!(!error.contains('?') && !error.contains("struct"), "{text}: {error}");
    }
}

#[test]
fn without_a_module_there_is_one_graph_named_model() {
    let bare = |graphs: Value| read(&json!({"name": "a", "version": "1", "graphs": graphs}));
    assert!(bare(json!({"model": {"digest": digest('a')}})).is_ok());
    let graphs = json!({"model": {"digest": digest('a')}});
    let again = read(&json!({"name": "a", "version": "1", "graphs": graphs, "limits": {"reuse": 2}}));
    assert_eq!(again.unwrap_err().field, "limits.reuse");
    for wrong in [json!({}), json!({"other": {"digest": digest('a')}})] {
        assert_eq!(bare(wrong).unwrap_err().field, "graphs");
    }
}

#[test]
fn each_limit_is_cut_down_to_its_ceiling() {
    let fields = ["memory", "tensor_memory", "wall_ms", "cpu_ms", "concurrency", "output", "log", "reuse"];
    let all = |value: u32| Value::Object(fields.iter().map(|field| ((*field).into(), json!(value))).collect());
    let wanted: WantedLimits = serde_json::from_value(all(9)).unwrap();
    for field in fields {
        let mut ceiling = all(1000);
        ceiling[field] = json!(2);
        let limits = wanted.within(&serde_json::from_value(ceiling).unwrap());
        let mut expected = all(9);
        expected[field] = json!(2);
        assert_eq!(serde_json::to_value(limits).unwrap(), expected);
    }
}

#[test]
fn the_ceiling_holds_and_defaults_fill_in() {
    let ceiling = Limits { memory: 10, wall_ms: 5, ..Limits::default() };
    let wanted = WantedLimits { memory: Some(20), cpu_ms: Some(1), ..WantedLimits::default() };
    let limits = wanted.within(&ceiling);
    assert_eq!((limits.memory, limits.wall_ms, limits.cpu_ms), (10, 5, 1));
    let reuse = |wanted, most| {
        let wanted = WantedLimits { reuse: wanted, ..WantedLimits::default() };
        wanted.within(&Limits { reuse: most, ..Limits::default() }).reuse
    };
    assert_eq!([reuse(None, 1000), reuse(Some(20), 1000), reuse(Some(20), 10)], [1, 20, 10]);
    assert_eq!(limits.output, Limits::default().output);
}

/// Any JSON, mostly shaped like a manifest.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let key = prop_oneof!["[a-z./]{0,8}", Just("digest".to_string()), Just("memory".to_string())];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Manifest::from_json(&bytes);
    }

    #[test]
    fn one_strange_field_is_read_or_refused(field in 0usize..10, value in any_json()) {
        let mut manifest = whole();
        let keys: Vec<String> = manifest.as_object().unwrap().keys().cloned().collect();
        manifest[&keys[field % keys.len()]] = value;
        if let Ok(manifest) = read(&manifest) {
            prop_assert_eq!(Manifest::from_json(&manifest.to_json()).unwrap(), manifest);
        }
    }

    #[test]
    fn no_asset_leaves_its_folder(path in "[a./\\\\]{1,12}") {
        let mut manifest = whole();
        manifest["assets"] = json!({ path.clone(): digest('d') });
        if read(&manifest).is_ok() {
            let joined = std::path::Path::new("/assets").join(&path);
            prop_assert!(joined.components().all(|c| !matches!(c, std::path::Component::ParentDir)));
            prop_assert!(joined.starts_with("/assets") && joined != std::path::Path::new("/assets"));
        }
    }
}
