//! Deploying to a real server process, and killing it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use serde_json::json;
use windrose::control::log::{Change, Record, Revision};
use windrose::control::store::hex_digest;

use crate::server::{Server, answered, checkout};

#[test]
fn what_is_deployed_survives_kill_9_at_any_moment() {
    let mut server = Server::start(&[]);
    server.deploy_graph("identity_fp32", "kept", "1");
    let graph = checkout("models/test/identity_fp32.onnx");
    let mut acknowledged = Vec::new();
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("again: SEED={seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    // A deployment takes some 50 ms here, and several times that on a busy machine.
    for number in 0..12 {
        let delay = random.random_range(0..[20, 60, 200][number % 3]);
        let name = format!("extra{number}");
        let arguments = ["deploy", graph.to_str().unwrap(), "--name", &name];
        let done = std::thread::scope(|scope| {
            let (server_ref, arguments) = (&server, &arguments);
            let deploying = scope.spawn(move || server_ref.cli(arguments).status.success());
            std::thread::sleep(Duration::from_millis(delay));
            server.kill_now();
            deploying.join().unwrap()
        });
        server.kill();
        if done {
            acknowledged.push(name.clone());
        }
        server.run();
        assert_eq!(server.infer("kept").0, 200, "{}", server.log());
        for name in &acknowledged {
            assert_eq!(server.infer(name).0, 200, "{name} was acknowledged\n{}", server.log());
        }
        assert!([200, 404].contains(&server.infer(&name).0));
    }
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn replacing_and_removing_under_load_fails_no_request() {
    let server = Server::start(&[]);
    server.deploy_graph("identity_fp32", "busy", "1");
    let stop = AtomicBool::new(false);
    let answered = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut answered = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let (status, body) = server.infer("busy");
                        assert_eq!(status, 200, "{body}");
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        for round in 0..6 {
            server.deploy_graph(if round % 2 == 0 { "add_fp32" } else { "identity_fp32" }, "other", "1");
            server.deploy_graph("identity_fp32", "busy", "2");
            server.ok(&["delete", "busy", "--version", "2", "--yes"]);
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>()
    });
    assert!(answered > 50, "{answered}");
}

#[test]
fn the_same_again_changes_nothing_and_other_content_replaces() {
    let server = Server::start(&[]);
    let deploy = |graph: &str| {
        let path = checkout(&format!("models/test/{graph}.onnx"));
        let text = server.ok(&["deploy", path.to_str().unwrap(), "--name", "m", "--json"]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    assert_eq!(deploy("identity_fp32")["revision"], 1);
    let again = deploy("identity_fp32");
    assert_eq!((&again["revision"], &again["changed"]), (&json!(1), &json!(false)));
    assert_eq!(deploy("tiny")["changed"], true);
}

#[test]
fn hostile_graphs_are_refused_with_their_reason_and_the_old_version_stays() {
    let server = Server::start(&[("WINDROSE_CEILING_WALL", "2s")]);
    server.deploy_graph("identity_fp32", "m", "1");
    for (graph, status, reason) in [
        ("terabyte", 1, "memory"),
        ("aborts_at_load", 1, "graph `model`"),
        ("endless_loop", 1, "did not end within 2s"),
        ("refused_deep", 2, "deeper"),
        ("refused_domain", 2, "domain"),
        ("refused_external_data", 2, "external"),
    ] {
        let path = checkout(&format!("models/test/{graph}.onnx"));
        let (code, said) = server.refused(&["deploy", path.to_str().unwrap(), "--name", "m"]);
        assert_eq!(code, status, "{graph}: {said}");
        assert!(said.contains(reason), "{graph}: {said}");
        assert_eq!(server.infer("m").0, 200, "{graph}");
    }
}

#[test]
fn a_version_that_fails_its_own_test_does_not_go_live() {
    let server = Server::start(&[]);
    let folder = server.dir.path().join("m");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(checkout("models/test/identity_fp32.onnx"), folder.join("g.onnx")).unwrap();
    let text = "name = \"m\"\n[graphs.model]\nfile = \"g.onnx\"\n[test]\ninput = \"in.json\"\noutput = \"out.json\"\n";
    std::fs::write(folder.join("windrose.toml"), text).unwrap();
    let tensor =
        |name: &str, data: [f32; 2]| json!([{"name": name, "datatype": "FP32", "shape": [1, 2], "data": data}]);
    std::fs::write(folder.join("in.json"), json!({"inputs": tensor("x", [1.0, 2.0])}).to_string()).unwrap();
    let expect =
        |data| std::fs::write(folder.join("out.json"), json!({"outputs": tensor("y", data)}).to_string()).unwrap();
    let folder_path = folder.to_str().unwrap();
    let refused = |said: &str| {
        let (status, text) = server.refused(&["deploy", folder_path]);
        assert!(status == 1 && text.contains(said), "{text}");
    };
    expect([1.0, 2.5]);
    refused("self-test: output `y` differs from the golden one at element 1: 2 instead of 2.5");
    assert_eq!(server.infer("m").0, 404, "it never went live");
    expect([1.0, 2.0]);
    server.ok(&["deploy", folder_path]);
    assert_eq!(server.infer("m").0, 200);
    // The next one fails, and this one stays.
    let before: serde_json::Value = serde_json::from_str(&server.ok(&["inspect", "m", "--json"])).unwrap();
    std::fs::write(folder.join("in.json"), json!({"inputs": tensor("z", [1.0, 2.0])}).to_string()).unwrap();
    refused("self-test: input: the model has no input `z`");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&server.ok(&["inspect", "m", "--json"])).unwrap(), before);
    assert_eq!(server.infer("m").0, 200);
}

/// A component whose one core module has many large functions: compiling it takes longer than its budget.
fn endless_to_compile() -> Vec<u8> {
    fn leb(mut value: usize, out: &mut Vec<u8>) {
        loop {
            let byte = (value & 0x7f) as u8;
            value >>= 7;
            out.push(if value == 0 { byte } else { byte | 0x80 });
            if value == 0 {
                break;
            }
        }
    }
    let section = |id: u8, content: &[u8]| {
        let mut out = vec![id];
        leb(content.len(), &mut out);
        out.extend_from_slice(content);
        out
    };
    // (func (param i32) (result i32) local.get 0, then thousands of: local.get 0, i32.mul, i32.popcnt)
    let mut body = vec![0, 0x20, 0];
    for _ in 0..15_000 {
        body.extend_from_slice(&[0x20, 0, 0x6c, 0x69]);
    }
    body.push(0x0b);
    let functions = 600;
    let mut declared = Vec::new();
    leb(functions, &mut declared);
    declared.extend(std::iter::repeat_n(0u8, functions));
    let mut code = Vec::new();
    leb(functions, &mut code);
    for _ in 0..functions {
        leb(body.len(), &mut code);
        code.extend_from_slice(&body);
    }
    let mut core = b"\0asm\x01\0\0\0".to_vec();
    core.extend(section(1, &[1, 0x60, 1, 0x7f, 1, 0x7f]));
    core.extend(section(3, &declared));
    core.extend(section(10, &code));
    // It is a component that can be served in everything else.
    let mut component = windrose_sandbox::PASSTHROUGH.to_vec();
    component.extend(section(1, &core));
    component
}

#[test]
fn hostile_modules_are_refused_with_their_reason() {
    let server = Server::start(&[("WINDROSE_PREPARE_CPU", "3s"), ("WINDROSE_PREPARE_WALL", "20s")]);
    server.deploy_graph("identity_fp32", "good", "1");
    let write = |name: &str, bytes: &[u8]| {
        let path = server.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_string()
    };
    let slow = write("slow.wasm", &endless_to_compile());
    let graph = format!("model={}", checkout("models/test/identity_fp32.onnx").display());
    let (status, said) = server.refused(&["deploy", &slow, "--graph", &graph]);
    assert_eq!(status, 1, "{said}");
    assert!(["CPU time", "took longer"].iter().any(|reason| said.contains(reason)), "{said}");
    let core = write("core.wasm", b"\0asm\x01\0\0\0");
    let (_, said) = server.refused(&["deploy", &core]);
    assert!(said.contains("core module"), "{said}");
    let garbage = write("garbage.wasm", b"\0asm\x0d\0\x01\0\xff\xff\xff\xff");
    let (_, said) = server.refused(&["deploy", &garbage]);
    assert!(said.contains("module: "), "{said}");
    assert_eq!(server.infer("good").0, 200);
}

#[test]
fn a_graph_that_is_the_model_makes_what_it_declares() {
    let server = Server::start(&[]);
    let graph = checkout("models/test/misdeclared.onnx").display().to_string();
    let (status, said) = server.refused(&["deploy", &graph]);
    assert!(status == 1 && said.contains("declares its output `y` as [N, 3], and made [1, 4]"), "{status} {said}");
    let graph = checkout("models/test/misdeclared_type.onnx").display().to_string();
    let (status, said) = server.refused(&["deploy", &graph]);
    assert!(status == 1 && said.contains("declares an output as INT32, of which rten makes"), "{status} {said}");
}

#[test]
fn every_control_call_needs_the_token() {
    let server = Server::start(&[]);
    let token = server.token();
    for path in ["/v1/models", "/metrics", "/v1/openapi.json", "/v1/status", "/nowhere"] {
        for wrong in [None, Some(""), Some("nonsense"), Some(&token[1..])] {
            let (status, body) = server.control("GET", path, wrong, b"");
            assert_eq!((status, &body["kind"]), (401, &json!("unauthorized")), "{path}");
        }
    }
    assert_eq!(server.control("GET", "/v1/status", Some(&token), b"").1["ready"], true);
    assert_eq!(server.control("GET", "/nowhere", Some(&token), b"").0, 404);
}

#[test]
fn wrong_uploads_and_manifests_are_refused() {
    let server = Server::start(&[("WINDROSE_CONTROL_MAX_BLOB", "1000")]);
    let token = server.token();
    let put = |path: &str, body: &[u8]| server.control("PUT", path, Some(&token), body);
    let digest = "a".repeat(64);
    let (status, body) = put(&format!("/v1/blobs/{digest}"), b"other content");
    assert_eq!(status, 400, "{body}");
    assert!(body["error"].as_str().unwrap().contains("sha256"));
    assert_eq!(put(&format!("/v1/blobs/{digest}"), &[0; 1001]).0, 413);
    assert_eq!(put("/v1/blobs/../../token", b"x").0, 404);
    let manifest = json!({"name": "m", "version": "1", "graphs": {"model": {"digest": digest}}});
    let (status, body) = put("/v1/models/m/versions/1", manifest.to_string().as_bytes());
    assert_eq!((status, &body["missing"][0]["field"]), (409, &json!("graphs.model")), "{body}");
    let (status, body) = put("/v1/models/other/versions/1", manifest.to_string().as_bytes());
    assert!(status == 400 && body["error"].as_str().unwrap().starts_with("name: "), "{body}");
    let (status, body) = put("/v1/models/m/versions/1", br#"{"name":"m","version":"1","limits":{"memry":1}}"#);
    assert!(status == 400 && body["error"].as_str().unwrap().contains("limits.memry"), "{body}");
}

#[test]
fn the_ceiling_holds_and_inspect_shows_both() {
    let server = Server::start(&[("WINDROSE_CEILING_MEMORY", "32MiB")]);
    let folder = server.dir.path().join("m");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(checkout("models/test/identity_fp32.onnx"), folder.join("g.onnx")).unwrap();
    let text = "name = \"m\"\n[graphs.model]\nfile = \"g.onnx\"\n[limits]\nmemory = \"64MiB\"\n\
                [grants]\nnetwork = [\"a.example\"]\nload = true\n";
    std::fs::write(folder.join("windrose.toml"), text).unwrap();
    server.ok(&["deploy", folder.to_str().unwrap()]);
    let view: serde_json::Value = serde_json::from_str(&server.ok(&["inspect", "m", "--json"])).unwrap();
    let loaded = &view["loaded"];
    assert_eq!(loaded["limits"]["asked"]["memory"], 64 << 20);
    assert_eq!(loaded["limits"]["in_force"]["memory"], 32 << 20);
    assert_eq!(loaded["grants"]["asked"], json!({"network": ["a.example"], "load": true}));
    assert_eq!(loaded["grants"]["in_force"], json!({"network": [], "load": false}));
    assert_eq!(loaded["graphs"]["model"]["engine"], "rten");
}

#[test]
fn an_edited_cache_is_not_loaded_and_an_edited_blob_is_reported() {
    let mut server = Server::start(&[]);
    server.deploy_graph("identity_fp32", "kept", "1");
    server.deploy_graph("tiny", "spoilt", "1");
    let graph = std::fs::read(checkout("models/test/tiny.onnx")).unwrap();
    let digest = hex_digest(&graph);
    server.kill();
    let mut edited = 0;
    for entry in std::fs::read_dir(server.data_dir().join("cache")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        std::fs::write(&path, bytes).unwrap();
        edited += 1;
    }
    assert!(edited > 0);
    std::fs::write(server.data_dir().join("store/blobs/sha256").join(digest), b"other").unwrap();
    server.run();
    let (status, body) = server.infer("kept");
    assert_eq!((status, &body["outputs"][0]["data"]), (200, &json!([1.5, 2.5])));
    let models: serde_json::Value = serde_json::from_str(&server.ok(&["models", "--json"])).unwrap();
    let spoilt = models["models"].as_array().unwrap().iter().find(|m| m["name"] == "spoilt").unwrap();
    assert_eq!(spoilt["versions"][0]["state"], "failed");
    let reason = spoilt["versions"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("sha256"), "{reason}");
    // People and clients are told as well; the reason is the operator's.
    let listed = server.ok(&["models"]);
    assert!(listed.contains("failed") && listed.contains(reason), "{listed}");
    assert!(server.ok(&["inspect", "spoilt"]).contains(reason));
    for path in ["/v2/models/spoilt/ready", "/v2/models/spoilt/versions/1/ready"] {
        let (status, body) = server.get(path).unwrap();
        assert_eq!(status, 503);
        assert!(!String::from_utf8(body).unwrap().contains("sha256"));
    }
    let status: serde_json::Value = server.control("GET", "/v1/status", Some(&server.token()), b"").1;
    assert_eq!((&status["ready"], &status["models_failed"]), (&json!(false), &json!(1)), "{status}");
    server.deploy_graph("tiny", "spoilt", "1");
    assert!(!server.ok(&["models"]).contains("failed"));
    assert_eq!(server.get("/v2/models/spoilt/ready").unwrap().0, 200);
}

/// Writes into a stopped gateway's store what one would have that did not refuse the graph: a revision after the last, in
/// which `model` stands on these bytes.
fn as_deployed_before(server: &Server, model: &str, graph: &[u8]) {
    let store = server.data_dir().join("store");
    let put = |bytes: &[u8]| {
        let digest = hex_digest(bytes);
        std::fs::write(store.join("blobs/sha256").join(&digest), bytes).unwrap();
        digest
    };
    let revisions = std::fs::read_dir(store.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let last = std::fs::read(revisions.max().unwrap()).unwrap();
    let mut revision = Revision::from_json(&last).unwrap();
    let versions = revision.models.get_mut(model).unwrap();
    let (version, record) = versions.iter_mut().next().unwrap();
    let bytes = std::fs::read(store.join("blobs/sha256").join(&*record)).unwrap();
    let mut kept: Record = serde_json::from_slice(&bytes).unwrap();
    kept.manifest.graphs.get_mut("model").unwrap().digest = put(graph);
    *record = put(&serde_json::to_vec(&kept).unwrap());
    revision.change = Change::Deploy { model: model.into(), version: version.clone() };
    revision.number += 1;
    revision.previous = Some(hex_digest(&last));
    std::fs::write(store.join(format!("log/{:020}.json", revision.number)), revision.to_json()).unwrap();
}

#[test]
fn a_graph_that_is_refused_since_it_was_deployed_fails_alone() {
    let mut server = Server::start(&[]);
    for (name, version) in [("kept", "1"), ("refused", "1")] {
        server.deploy_graph("identity_fp32", name, version);
    }
    assert_eq!(server.terminate(), Some(0));
    as_deployed_before(&server, "refused", &std::fs::read(checkout("models/test/square_int64.onnx")).unwrap());
    server.run();
    assert_eq!(server.infer("kept").0, 200);
    let (status, body) = server.infer("refused");
    assert!(status == 503 && !body.to_string().contains("ONNX Runtime"), "{status} {body}");
    let why = "needs ONNX Runtime";
    for command in [&["models"][..], &["inspect", "refused"]] {
        let said = server.ok(command);
        assert!(said.contains("failed") && said.contains(why), "{said}");
    }
    let view: serde_json::Value = serde_json::from_str(&server.ok(&["inspect", "refused", "--json"])).unwrap();
    assert!(view["state"] == "failed" && view["reason"].as_str().unwrap().contains(why), "{view}");
    let status = server.control("GET", "/v1/status", Some(&server.token()), b"").1;
    assert_eq!(status["models_failed"], 1, "{status}");
    // It is still deployed, and can be replaced and removed.
    server.deploy_graph("identity_fp32", "refused", "1");
    assert_eq!(server.infer("refused").0, 200);
}

#[test]
fn an_initialiser_runs_at_deployment_and_again_only_where_the_cache_is_gone() {
    let mut server = Server::start(&[]);
    let folder = server.data_dir().join("model");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(checkout("target/guests/embed.wasm"), folder.join("m.wasm")).unwrap();
    std::fs::copy(checkout("models/test/identity_fp32.onnx"), folder.join("g.onnx")).unwrap();
    let text = "name = \"m\"\nmodule = \"m.wasm\"\n[graphs.model]\nfile = \"g.onnx\"\n";
    std::fs::write(folder.join("windrose.toml"), text).unwrap();
    server.ok(&["deploy", folder.to_str().unwrap()]);
    let cached = |server: &Server| -> Vec<_> {
        let entries = std::fs::read_dir(server.data_dir().join("cache")).unwrap().map(Result::unwrap);
        entries.map(|entry| (entry.path(), entry.metadata().unwrap().modified().unwrap())).collect()
    };
    let answer = |server: &Server| {
        let request = json!({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [0], "data": []}]}).to_string();
        let (status, body) = server.post("/v2/models/m/infer", request.as_bytes());
        assert_eq!((status, &body["outputs"][0]["shape"]), (200, &json!([0, 384])), "{}", server.log());
    };
    answer(&server);
    let view: serde_json::Value = serde_json::from_str(&server.ok(&["inspect", "m", "--json"])).unwrap();
    assert!(view["preparation"]["timings_ms"]["initialise"].is_u64(), "{view}");
    let before = cached(&server);
    assert_eq!(before.len(), 1, "what is compiled is the snapshot, and nothing else");
    server.kill();
    server.run();
    answer(&server);
    assert_eq!(cached(&server), before, "it was not made again");
    server.kill();
    std::fs::remove_file(&before[0].0).unwrap();
    server.run();
    answer(&server);
    assert_eq!(cached(&server)[0].0, before[0].0, "it was made again, under the same name");
}

#[test]
fn ids_and_traces_are_on_every_answer_of_both_listeners() {
    let server = Server::start(&[]);
    let token = format!("authorization: Bearer {}\r\n", server.token());
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let own = format!("x-request-id: mine\r\ntraceparent: {parent}\r\ntracestate: a=1\r\n");
    for (address, path, headers, status) in [
        (server.data, "/v2", "", 200),
        (server.data, "/nowhere", "", 404),
        (server.control, "/v1/status", &*token, 200),
        (server.control, "/v1/nowhere", &token, 404),
        (server.control, "/v1/models/nobody", &token, 404),
        (server.control, "/v1/status", "", 401),
    ] {
        let (head, _) = answered(address, "GET", path, &format!("{headers}{own}"), b"").unwrap();
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{path}: {head}");
        let of = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or("");
        assert_eq!((of("x-request-id"), of("tracestate")), ("mine", "a=1"), "{path}");
        assert!(of("traceparent").starts_with(&parent[..36]) && of("traceparent") != parent, "{path}");
        let (head, _) = answered(address, "GET", path, headers, b"").unwrap();
        assert!(head.contains("\nx-request-id: ") && head.contains("\ntraceparent: 00-"), "{path}: {head}");
    }
}
