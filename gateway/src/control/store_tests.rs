use std::convert::Infallible;

use super::*;
use crate::control::log::{Actor, Change, Preparation};

fn stream(parts: &[&[u8]]) -> impl Stream<Item = Result<Bytes, Infallible>> + use<> {
    let parts: Vec<_> = parts.iter().map(|part| Ok(Bytes::copy_from_slice(part))).collect();
    futures_util::stream::iter(parts)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all
}

fn revision(number: u64, previous: Option<&Revision>) -> Revision {
    Revision {
        number,
        previous: previous.map(Revision::digest),
        at: "2026-01-01T00:00:00Z".into(),
        by: Actor::default(),
        change: Change::Delete { model: "m".into(), version: None },
        models: BTreeMap::new(),
    }
}

#[tokio::test]
async fn a_blob_is_there_only_when_its_content_was_right() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let digest = hex_digest(b"hello world");
    let wrong = store.put_blob(&digest, stream(&[b"hello", b" word"]), 100).await;
    assert!(matches!(wrong, Err(StoreError::Digest { .. })));
    let large = store.put_blob(&digest, stream(&[b"hello", b" world"]), 10).await;
    assert!(matches!(large, Err(StoreError::TooLarge { limit: 10 })));
    assert_eq!(store.blob_size(&digest).await.unwrap(), None);
    assert!(files(&dir.path().join("store")).is_empty(), "what was refused leaves nothing");
    assert!(store.put_blob(&digest, stream(&[b"hello", b" world"]), 100).await.unwrap());
    assert!(!store.put_blob(&digest, stream(&[b"not read at all"]), 100).await.unwrap());
    assert_eq!(store.read_blob(&digest).await.unwrap(), "hello world");
}

#[tokio::test]
async fn an_edited_blob_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let digest = store.put_bytes(Bytes::from_static(b"weights")).await.unwrap();
    std::fs::write(store.blob_path(&digest).unwrap(), b"poison!").unwrap();
    assert!(matches!(store.read_blob(&digest).await, Err(StoreError::Damaged(_))));
}

#[tokio::test]
async fn the_log_is_a_chain_and_a_number_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.last_revision().await.unwrap(), None);
    let first = revision(1, None);
    let second = revision(2, Some(&first));
    store.append(&first).await.unwrap();
    store.append(&second).await.unwrap();
    assert!(matches!(store.append(&second).await, Err(StoreError::Conflict(2))));
    assert_eq!(store.last_revision().await.unwrap(), Some(second));
    store.append(&revision(3, Some(&first))).await.unwrap();
    assert!(matches!(store.last_revision().await, Err(StoreError::Damaged(_))));
}

#[tokio::test]
async fn one_process_at_a_time_and_no_leftovers() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Locked(_))));
    let digest = store.put_bytes(Bytes::from_static(b"kept")).await.unwrap();
    let staged = format!("{}#1", store.blob_path(&digest).unwrap().display());
    std::fs::write(&staged, b"half").unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(!Path::new(&staged).exists());
    assert_eq!(store.read_blob(&digest).await.unwrap(), "kept");
}

#[tokio::test]
async fn sweeping_spares_what_is_named_young_or_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let named = store.put_bytes(Bytes::from_static(b"named")).await.unwrap();
    let stale = store.put_bytes(Bytes::from_static(b"stale")).await.unwrap();
    let keep = HashSet::from([named.clone()]);
    assert_eq!(store.sweep(&keep, Duration::from_secs(60)).await.unwrap(), 0);
    assert_eq!(store.sweep(&keep, Duration::ZERO).await.unwrap(), 1);
    assert!(store.blob_size(&named).await.unwrap().is_some());
    assert!(store.blob_size(&stale).await.unwrap().is_none());
}

#[tokio::test]
async fn an_upload_is_its_senders_until_the_blob_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let content = Bytes::from_static(b"content");
    let digest = store.put_bytes(content.clone()).await.unwrap();
    let send = |bytes: &'static [u8]| futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(bytes))]);
    let has = async |who| store.has_blob(&digest, who).await.unwrap();
    assert!(has(None).await && !has(Some("a")).await);
    // What is there already is not taken on trust.
    let wrong = store.put_blob_of("a", &digest, send(b"guessed"), 100).await;
    assert!(matches!(wrong, Err(StoreError::Digest { .. })) && !has(Some("a")).await);
    let long = store.put_blob_of("a", &digest, send(b"content"), 3).await;
    assert!(matches!(long, Err(StoreError::TooLarge { limit: 3 })) && !has(Some("a")).await);
    assert!(store.put_blob_of("a", &digest, send(b"content"), 100).await.unwrap());
    assert!(!store.put_blob_of("a", &digest, send(b"never read"), 100).await.unwrap());
    assert!(has(Some("a")).await && !has(Some("b")).await);
    assert_eq!(store.sweep(&HashSet::from([digest.clone()]), Duration::ZERO).await.unwrap(), 0);
    assert!(has(Some("a")).await, "what a model names stays its uploader's");
    assert_eq!(store.sweep(&HashSet::new(), Duration::ZERO).await.unwrap(), 1);
    store.put_bytes(content).await.unwrap();
    assert!(has(None).await && !has(Some("a")).await, "an upload that was removed counts no more");
}

#[tokio::test]
async fn a_pruned_log_is_still_a_chain() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut last: Option<Revision> = None;
    for number in 1..=9 {
        let next = revision(number, last.as_ref());
        store.append(&next).await.unwrap();
        store.prune(number, 3).await.unwrap();
        last = Some(next);
    }
    let log = dir.path().join("store/log");
    assert_eq!(files(&log).len(), 3);
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.last_revision().await.unwrap(), last);
    for number in [8, 9] {
        // By the files alone, as anybody can: a revision names the sha256 of the file before it.
        let file = std::fs::read(log.join(format!("{:020}.json", number - 1))).unwrap();
        assert_eq!(store.revision(number).await.unwrap().previous, Some(hex_digest(&file)));
    }
    // It goes on where it was, after a start and under another setting.
    let tenth = revision(10, last.as_ref());
    store.append(&tenth).await.unwrap();
    store.prune(10, 1).await.unwrap();
    assert_eq!(files(&log).len(), 1);
    assert_eq!(store.last_revision().await.unwrap(), Some(tenth));
}

fn engines(label: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("model".into(), label.into())])
}

fn prepared_again(record: &str, label: &str, warning: &str) -> PreparedAgain {
    let preparation = Preparation { warnings: vec![warning.into()], engines: engines(label), ..Preparation::default() };
    PreparedAgain { record: record.into(), at: "2026-01-01T00:00:00Z".into(), preparation }
}

#[tokio::test]
async fn a_record_is_kept_as_prepared_for_each_set_of_engines() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let record = store.put_bytes(Bytes::from_static(b"record")).await.unwrap();
    let (one, other) = (prepared_again(&record, "rten 1", ""), prepared_again(&record, "onnxruntime 1", ""));
    for again in [&one, &other] {
        assert_eq!(store.prepared_again(&record, &again.preparation.engines).await.unwrap(), None);
        store.keep_prepared(again).await.unwrap();
    }
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    for again in [&one, &other] {
        let kept = store.prepared_again(&record, &again.preparation.engines).await.unwrap();
        assert_eq!(kept.as_ref(), Some(again), "neither takes the other's place");
    }
    assert_eq!(store.prepared_again(&record, &engines("rten 2")).await.unwrap(), None);
    let newer = prepared_again(&record, "rten 1", "of another time");
    store.keep_prepared(&newer).await.unwrap();
    assert_eq!(store.prepared_again(&record, &engines("rten 1")).await.unwrap(), Some(newer));
    assert_eq!(files(&dir.path().join("store/prepared")).len(), 2);
}

#[tokio::test]
async fn what_was_prepared_again_counts_only_as_it_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (record, other) = ("1".repeat(64), "2".repeat(64));
    let (again, engines) = (prepared_again(&record, "rten 1", "a warning"), engines("rten 1"));
    let path = |record: &str| store.local.path_to_filesystem(&prepared_key(record, &engines)).unwrap();
    store.keep_prepared(&again).await.unwrap();
    let kept = std::fs::read(path(&record)).unwrap();
    // Edited, cut off, empty, and with no digest: each is refused once, and is gone then.
    let edited = String::from_utf8(kept.clone()).unwrap().replace("a warning", "a warming").into_bytes();
    for content in [&edited[..], &kept[..kept.len() - 1], &kept[..64], &[], &kept[65..]] {
        std::fs::write(path(&record), content).unwrap();
        let refused = store.prepared_again(&record, &engines).await;
        assert!(matches!(refused, Err(StoreError::Damaged(_))), "{}", String::from_utf8_lossy(content));
        assert_eq!(store.prepared_again(&record, &engines).await.unwrap(), None);
    }
    // Nor is it another record's.
    std::fs::write(path(&other), &kept).unwrap();
    assert!(matches!(store.prepared_again(&other, &engines).await, Err(StoreError::Damaged(_))));
    std::fs::write(path(&record), &kept).unwrap();
    assert_eq!(store.prepared_again(&record, &engines).await.unwrap(), Some(again));
}

#[tokio::test]
async fn what_was_prepared_again_goes_with_its_record_and_the_oldest_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let record = store.put_bytes(Bytes::from_static(b"record")).await.unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(1000);
    for number in 0..ENGINE_SETS + 2 {
        let again = prepared_again(&record, &format!("rten {number}"), "");
        store.keep_prepared(&again).await.unwrap();
        let key = prepared_key(&record, &again.preparation.engines);
        let file = File::options().write(true).open(store.local.path_to_filesystem(&key).unwrap()).unwrap();
        file.set_modified(long_ago + Duration::from_secs(number as u64)).unwrap();
    }
    let left = async || {
        let mut left = Vec::new();
        for number in 0..ENGINE_SETS + 2 {
            let kept = store.prepared_again(&record, &engines(&format!("rten {number}"))).await.unwrap();
            left.extend(kept.map(|_| number));
        }
        left
    };
    store.sweep(&HashSet::from([record.clone()]), Duration::ZERO).await.unwrap();
    assert_eq!(left().await, (2..ENGINE_SETS + 2).collect::<Vec<_>>());
    assert_eq!(store.sweep(&HashSet::new(), Duration::ZERO).await.unwrap(), 1, "only blobs are counted");
    assert!(left().await.is_empty());
    assert!(files(&dir.path().join("store/prepared")).is_empty());
}

#[tokio::test]
async fn an_error_says_what_the_system_said_and_not_where() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    // Where blobs would go there is a file.
    std::fs::write(dir.path().join("store").join("blobs"), "").unwrap();
    let error = store.put_bytes(Bytes::from_static(b"hello")).await.unwrap_err().to_string();
    assert!(error.contains("os error"), "{error}");
    assert!(!error.contains(&*dir.path().to_string_lossy()), "{error}");
}
