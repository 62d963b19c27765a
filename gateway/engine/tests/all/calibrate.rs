//! What running a graph tells about batches of it, on real engines.

use std::time::Duration;

use windrose_engine::{BatchPolicy, Calibration, EngineChoice, Graph, GraphOptions, Tensor, calibrate};

use crate::setup::{backends, engines, job, onnx};

const BUDGET: Duration = Duration::from_secs(20);

/// Tries a graph of `models/test` on every backend that loads it.
fn tried(name: &str, sample: Option<Vec<(&'static str, Tensor)>>) -> Vec<Calibration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let one = |engine| {
        let options = GraphOptions { engine, sessions: Some(1), ..Default::default() };
        let graph = engines().load_to_try(onnx(name), &options).ok()?;
        runtime.block_on(async {
            if let Some(sample) = sample.clone() {
                graph.compute(job(sample)).await.expect("an answer");
            }
            Some(calibrate(&graph, BUDGET).await)
        })
    };
    backends().into_iter().filter_map(one).collect()
}

#[test]
fn rows_that_do_not_change_each_other_are_measured() {
    for name in ["tiny", "rows", "add_fp32", "two_in_two_out", "encoder"] {
        for found in tried(name, None) {
            assert_eq!((found.refused, found.cut_short), (None, false), "{name}");
            let sizes: Vec<usize> = found.curve.iter().map(|point| point.rows).collect();
            assert!(sizes.starts_with(&[1, 2, 4]), "{name}: {sizes:?}");
            assert!(found.curve.iter().all(|point| point.micros > 0.0), "{name}: {:?}", found.curve);
        }
    }
}

#[test]
fn rows_that_change_each_other_are_found_out() {
    for (name, why) in [
        ("dynamic_quantization", "rows change each other: output 'y' differs at element"),
        ("mean_of_rows", "rows change each other: output 'y' differs at element"),
        ("state_on_axis_1", "rows together failed"),
        ("nonzero", "the first dimension of output 'where' is always 2"),
        ("loop", "input 'times' is a scalar"),
        ("identity_fp32", "declares no rank"),
    ] {
        let found = tried(name, None);
        assert!(!found.is_empty());
        for found in found {
            let refused = found.refused.unwrap_or_default();
            assert!(refused.contains(why), "{name}: {refused:?}");
            assert!(found.curve.is_empty() && !found.cut_short);
        }
    }
}

#[test]
fn a_state_on_another_axis_is_found_out_where_its_shape_would_fit() {
    let sample = vec![
        ("x", Tensor::from_vec([1, 4], vec![1f32, 2.0, 3.0, 4.0]).expect("x")),
        ("state", Tensor::from_vec([1, 1, 4], vec![1f32; 4]).expect("a state")),
    ];
    for found in tried("state_on_axis_1", Some(sample)) {
        let refused = found.refused.unwrap_or_default();
        assert!(refused.contains("rows change each other: output 'y' differs at element"), "{refused}");
    }
}

#[test]
fn a_sample_is_taken_where_nothing_else_is_accepted() {
    // Ids from 90 on are taken by the table of 100 words and are no small numbers.
    let ids = Tensor::from_vec([1, 5], vec![90i64, 99, 98, 97, 91]).expect("ids");
    let mask = Tensor::from_vec([1, 5], vec![1i64; 5]).expect("a mask");
    for found in tried("encoder", Some(vec![("input_ids", ids), ("attention_mask", mask)])) {
        assert_eq!(found.refused, None);
        assert_eq!(found.curve.len(), 6, "{:?}", found.curve);
    }
}

#[test]
fn a_sample_of_one_row_of_integers_shows_what_takes_one_scale_for_all() {
    for numbers in [&[101i64, 7592, 102][..], &[1, 50, 60, 70, 200], &[9]] {
        let sample = Tensor::from_vec([1, numbers.len()], numbers.to_vec()).expect("numbers");
        let found = tried("quantised_numbers", Some(vec![("numbers", sample)]));
        assert!(!found.is_empty());
        for found in found {
            let refused = found.refused.unwrap_or_default();
            assert!(
                refused.contains("rows change each other: output 'y' differs at element"),
                "{numbers:?}: {refused}"
            );
        }
    }
}

/// The text encoder, filled up along its second axis with ids that mean something and a mask that hides them or not.
fn padded(engine: EngineChoice, mask: i64) -> Graph {
    let padding =
        format!(r#"{{"inputs": {{"input_ids": 7, "attention_mask": {mask}}}, "outputs": ["hidden"], "step": 8}}"#);
    let padding = Some(serde_json::from_str(&padding).expect("a padding"));
    let options = GraphOptions { engine, sessions: Some(1), padding, ..Default::default() };
    engines().load_to_try(onnx("encoder"), &options).expect("a graph")
}

#[test]
fn lengths_run_together_where_a_mask_hides_what_was_filled_up() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for engine in backends() {
        let found = runtime.block_on(calibrate(&padded(engine, 1), BUDGET));
        let refused = found.padding_refused.expect("a mask of ones hides nothing");
        assert!(refused.contains("filling rows up changes them: output 'hidden' differs"), "{refused}");
        assert_eq!(found.refused, None);
        let graph = padded(engine, 0);
        let found = runtime.block_on(calibrate(&graph, BUDGET));
        assert_eq!((found.refused, found.padding_refused), (None, None));
        let text = |length: usize| {
            let ids: Vec<i64> = (0..length).map(|at| ((at * 13 + length) % 100) as i64).collect();
            job(vec![
                ("input_ids", Tensor::from_vec([1, length], ids).expect("ids")),
                ("attention_mask", Tensor::from_vec([1, length], vec![1i64; length]).expect("a mask")),
            ])
        };
        runtime.block_on(async {
            let mut alone = Vec::new();
            for length in [3, 8, 5, 12] {
                alone.push(graph.compute(text(length)).await.expect("an answer").remove(0).1);
            }
            graph.set_batching(BatchPolicy { max_rows: 3, delay: Duration::from_secs(3600) });
            graph.set_padding(true);
            let before = graph.counts().executions;
            let long = tokio::time::timeout(Duration::from_millis(50), graph.compute(text(12)));
            let (a, b, c, d) =
                tokio::join!(graph.compute(text(3)), graph.compute(text(8)), graph.compute(text(5)), long);
            assert_eq!(graph.counts().executions - before, 1);
            assert!(d.is_err(), "another step: it waits for its own");
            for (together, alone) in [a, b, c].into_iter().zip(&alone) {
                let together = together.expect("an answer").remove(0).1;
                assert_eq!(together.shape(), alone.shape());
                let (one, other) = (together.values::<f32>().expect("floats"), alone.values::<f32>().expect("floats"));
                assert!(one.iter().zip(other.iter()).all(|(a, b)| (a - b).abs() < 1e-4));
            }
        });
    }
}

#[test]
fn a_run_that_takes_too_long_is_not_tried() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for engine in backends() {
        let options = GraphOptions { engine, sessions: Some(1), ..Default::default() };
        let graph = engines().load_to_try(onnx("tiny"), &options).expect("a graph");
        let found = runtime.block_on(calibrate(&graph, Duration::from_nanos(1)));
        assert!(found.cut_short);
        assert!(found.refused.is_some_and(|why| why.contains("too long") || why.contains("deadline")));
    }
}
