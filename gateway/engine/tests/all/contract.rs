//! What every backend promises, for each element type that it has.

use std::sync::OnceLock;

use bytes::Bytes;
use half::{bf16, f16};
use proptest::prelude::*;
use windrose_engine::{DataType, Dim, EngineChoice, EngineError, Fault, Graph, Tensor};

use crate::setup::{backends, job, load, run, run_one, try_load};

/// The types that rten has.
const RTEN: [DataType; 6] =
    [DataType::Bool, DataType::Uint8, DataType::Int8, DataType::Int32, DataType::Int64, DataType::Fp32];

fn has(engine: EngineChoice, datatype: DataType) -> bool {
    engine != EngineChoice::Rten || RTEN.contains(&datatype)
}

/// A tensor of a type and shape with values of every kind, each one that the engine can hold.
fn sample(engine: EngineChoice, datatype: DataType, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    macro_rules! of {
        ($($edge:expr),*) => {{
            let edges = [$($edge),*];
            Tensor::from_vec(shape, (0..n).map(|i| edges[i % edges.len()]).collect())
        }};
    }
    let wide = engine != EngineChoice::Rten;
    let made = match datatype {
        DataType::Bool => {
            Tensor::new(DataType::Bool, shape, (0..n).map(|i| (i % 3 == 0) as u8).collect::<Vec<_>>().into())
        }
        DataType::Uint8 => of!(0u8, 1, 200, u8::MAX),
        DataType::Uint16 => of!(1u16, 0, 40_000, u16::MAX),
        DataType::Uint32 => of!(1u32, 0, 3_000_000_000, u32::MAX),
        DataType::Uint64 => of!(1u64, 0, 1 << 63, u64::MAX),
        DataType::Int8 => of!(-1i8, 0, i8::MIN, i8::MAX),
        DataType::Int16 => of!(-1i16, 0, i16::MIN, i16::MAX),
        DataType::Int32 => of!(-1i32, 0, i32::MIN, i32::MAX),
        DataType::Int64 if wide => of!(-1i64, 0, i64::MIN, i64::MAX),
        DataType::Int64 => of!(-1i64, 0, i64::from(i32::MIN), i64::from(i32::MAX)),
        DataType::Fp16 => of!(f16::from_f32(1.5), f16::NEG_ZERO, f16::MAX, f16::INFINITY, f16::MIN_POSITIVE_SUBNORMAL),
        DataType::Bf16 => of!(bf16::from_f32(1.5), bf16::NEG_ZERO, bf16::MAX, bf16::INFINITY),
        DataType::Fp32 => of!(1.5f32, -0.0, f32::MAX, f32::NEG_INFINITY, f32::MIN_POSITIVE / 2.0),
        DataType::Fp64 => of!(1.5f64, -0.0, f64::MAX, f64::NEG_INFINITY, f64::MIN_POSITIVE / 2.0),
        DataType::Bytes => {
            let strings: [&[u8]; 4] = [b"windrose", b"", b"nul\0inside", "Nordwest\u{1f9ed}".as_bytes()];
            Tensor::from_strings(shape, &(0..n).map(|i| strings[i % 4]).collect::<Vec<_>>())
        }
    };
    made.expect("a sample")
}

/// The same tensor in memory that is aligned for nothing.
fn misaligned(tensor: &Tensor) -> Tensor {
    let mut padded = vec![0u8; 1];
    padded.extend_from_slice(tensor.data());
    Tensor::new(tensor.datatype(), tensor.shape(), Bytes::from(padded).slice(1..)).expect("the same tensor")
}

#[test]
fn each_type_and_rank_passes_unchanged() {
    let shapes: [&[usize]; 9] = [&[], &[1], &[5], &[2, 3], &[3, 1, 2], &[2, 2, 2, 2], &[0], &[2, 0, 3], &[1000, 3]];
    for engine in backends() {
        for datatype in DataType::ALL.into_iter().filter(|t| has(engine, *t)) {
            let graph = load(engine, &format!("identity_{}", datatype.name().to_lowercase()));
            for shape in shapes {
                let tensor = sample(engine, datatype, shape);
                assert_eq!(run_one(&graph, vec![("x", tensor.clone())]), tensor, "{engine:?}");
                assert_eq!(run_one(&graph, vec![("x", misaligned(&tensor))]), tensor, "{engine:?}, misaligned");
                if datatype != DataType::Bytes {
                    let carried = tensor.clone().reinterpret(datatype.carrier()).expect("a carrier");
                    assert_eq!(run_one(&graph, vec![("x", carried)]), tensor, "{engine:?}, carried");
                }
            }
        }
    }
}

#[test]
fn each_type_that_an_engine_lacks_is_refused() {
    for datatype in DataType::ALL.into_iter().filter(|t| !has(EngineChoice::Rten, *t)) {
        let refused = try_load(EngineChoice::Rten, &format!("identity_{}", datatype.name().to_lowercase()));
        let error = refused.expect_err("rten has no such type");
        assert!(matches!(error, EngineError::Unsupported(_)), "{error:?}");
        let message = error.to_string();
        assert!(message.contains("needs ONNX Runtime") && message.contains(datatype.name()), "{message}");
    }
}

#[test]
fn declared_types_are_told_under_every_engine() {
    for engine in backends() {
        let graph = load(engine, "two_in_two_out");
        let spec = graph.spec();
        let told = |specs: &[windrose_engine::TensorSpec]| {
            specs.iter().map(|s| (s.name.clone(), s.datatype, s.shape.clone())).collect::<Vec<_>>()
        };
        let n = || Dim::Symbol("N".into());
        assert_eq!(
            told(&spec.inputs),
            [
                ("pixels".into(), DataType::Fp32, Some(vec![n(), Dim::Fixed(3)])),
                ("labels".into(), DataType::Int64, Some(vec![n()]))
            ]
        );
        assert_eq!(
            told(&spec.outputs),
            [
                ("doubled".into(), DataType::Fp32, Some(vec![n(), Dim::Fixed(3)])),
                ("next".into(), DataType::Int64, Some(vec![n()]))
            ]
        );
        assert_eq!(load(engine, "greater").spec().outputs[0].datatype, DataType::Bool);
    }
}

#[test]
fn several_inputs_and_outputs_by_name_in_any_order() {
    for engine in backends() {
        let graph = load(engine, "two_in_two_out");
        let pixels = Tensor::from_vec([2, 3], vec![1f32, 2., 3., 4., 5., 6.]).expect("pixels");
        let labels = Tensor::from_vec([2], vec![41i64, -1]).expect("labels");
        let inputs = || vec![("labels", labels.clone()), ("pixels", pixels.clone())];
        let both = run(&graph, inputs()).expect("an answer");
        let doubled = Tensor::from_vec([2, 3], vec![2f32, 4., 6., 8., 10., 12.]).expect("doubled");
        let next = Tensor::from_vec([2], vec![42i64, 0]).expect("next");
        assert_eq!(both, [("doubled".to_owned(), doubled.clone()), ("next".to_owned(), next.clone())]);
        let mut wanted = job(inputs());
        wanted.outputs = vec!["next".into(), "doubled".into()];
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let turned = runtime.block_on(graph.compute(wanted.clone())).expect("an answer");
        assert_eq!(turned, [("next".to_owned(), next.clone()), ("doubled".to_owned(), doubled)]);
        wanted.outputs.pop();
        let one = runtime.block_on(graph.compute(wanted)).expect("an answer");
        assert_eq!(one, [("next".to_owned(), next)]);
    }
}

#[test]
fn numbers_are_added_in_their_own_type() {
    for engine in backends() {
        let shape = [2, 2];
        let graph = load(engine, "add_int32");
        let a = Tensor::from_vec(shape, vec![1i32, -2, i32::MAX - 1, 0]).expect("a");
        let b = Tensor::from_vec(shape, vec![10i32, 2, 1, i32::MIN]).expect("b");
        let sum = Tensor::from_vec(shape, vec![11i32, 0, i32::MAX, i32::MIN]).expect("sum");
        assert_eq!(run_one(&graph, vec![("a", a), ("b", b)]), sum);
        if engine != EngineChoice::Rten {
            let graph = load(engine, "add_int64");
            let a = Tensor::from_vec(shape, vec![1i64, -2, 3, 1 << 40]).expect("a");
            assert_eq!(
                run_one(&graph, vec![("a", a.clone()), ("b", a)]),
                Tensor::from_vec(shape, vec![2i64, -4, 6, 1 << 41]).expect("sum")
            );
        }
        let graph = load(engine, "not_bool");
        let x = Tensor::new(DataType::Bool, [3], Bytes::from_static(&[0, 1, 0])).expect("x");
        let y = Tensor::new(DataType::Bool, [3], Bytes::from_static(&[1, 0, 1])).expect("y");
        assert_eq!(run_one(&graph, vec![("x", x)]), y);
        let graph = load(engine, "greater");
        let a = Tensor::from_vec([3], vec![1f32, 2., 3.]).expect("a");
        let b = Tensor::from_vec([3], vec![2f32, 2., 2.]).expect("b");
        let more = Tensor::new(DataType::Bool, [3], Bytes::from_static(&[0, 0, 1])).expect("more");
        assert_eq!(run_one(&graph, vec![("a", a), ("b", b)]), more);
    }
}

#[test]
fn control_flow_and_shapes_that_depend_on_values() {
    for engine in backends() {
        let x = || Tensor::from_vec([3], vec![1f32, 2., 3.]).expect("x");
        let y = |values: [f32; 3]| Tensor::from_vec([3], values.to_vec()).expect("y");
        let flag = |b: u8| Tensor::new(DataType::Bool, [], vec![b].into()).expect("a flag");
        let graph = load(engine, "if");
        assert_eq!(run_one(&graph, vec![("double", flag(1)), ("x", x())]), y([2., 4., 6.]));
        assert_eq!(run_one(&graph, vec![("double", flag(0)), ("x", x())]), y([3., 4., 5.]));
        let graph = load(engine, "loop");
        for (times, factor) in [(0, 1.), (1, 2.), (5, 32.)] {
            let times = Tensor::from_vec([], vec![times as i64]).expect("times");
            assert_eq!(run_one(&graph, vec![("times", times), ("x", x())]), y([factor, 2. * factor, 3. * factor]));
        }
        let graph = load(engine, "nonzero");
        let x = Tensor::from_vec([2, 2], vec![0f32, 7., 0., 8.]).expect("x");
        let places = Tensor::from_vec([2, 2], vec![0i64, 1, 1, 1]).expect("places");
        assert_eq!(run_one(&graph, vec![("x", x)]), places);
        let none = Tensor::from_vec([1, 1], vec![0f32]).expect("x");
        assert_eq!(run_one(&graph, vec![("x", none)]).shape(), [2, 0]);
        let graph = load(engine, "slice_to_end");
        let x = Tensor::from_vec([3], vec![1f32, 2., 3.]).expect("x");
        assert_eq!(run_one(&graph, vec![("x", x)]), Tensor::from_vec([2], vec![2f32, 3.]).expect("y"));
    }
}

#[test]
fn byte_strings_where_the_engine_has_them() {
    for engine in backends() {
        if engine == EngineChoice::Rten {
            let refused = try_load(engine, "strings_upper").expect_err("rten has no strings").to_string();
            assert!(refused.contains("needs ONNX Runtime"), "{refused}");
            continue;
        }
        let graph = load(engine, "strings_upper");
        let words = Tensor::from_strings([2], &["north", "west"]).expect("words");
        let upper = Tensor::from_strings([2], &["NORTH", "WEST"]).expect("upper");
        assert_eq!(run_one(&graph, vec![("words", words.clone())]), upper);
        let carried = words.reinterpret(DataType::Uint8).expect("a carrier");
        assert_eq!(run_one(&graph, vec![("words", carried)]), upper);
    }
}

#[test]
fn strings_that_are_not_text_are_the_callers_error() {
    for engine in backends().into_iter().filter(|engine| *engine != EngineChoice::Rten) {
        let graph = load(engine, "strings_upper");
        let words = Tensor::from_strings([2], &[&b"north"[..], b"\xff\xfe"]).expect("words");
        let error = run(&graph, vec![("words", words.clone())]).expect_err("no UTF-8");
        let said = "input \"words\": element 1 is not UTF-8, which this graph needs";
        assert_eq!(error, EngineError::InvalidInput(said.into()));
        // A graph that only passes them on takes any bytes.
        assert_eq!(run_one(&load(engine, "identity_bytes"), vec![("x", words.clone())]), words);
    }
}

#[test]
fn a_value_that_the_engine_cannot_hold_is_the_callers_error() {
    for engine in backends() {
        let graph = load(engine, "moved_int64");
        for lost in [1i64 << 31, i64::MIN, i64::MAX, -(1 << 31) - 1] {
            let x = Tensor::from_vec([2], vec![5, lost]).expect("x");
            let answer = run(&graph, vec![("x", x)]);
            if engine == EngineChoice::Rten {
                let error = answer.expect_err("rten has 32 bits");
                assert_eq!(error.fault(), Fault::Caller);
                assert!(error.to_string().contains("'x'") && error.to_string().contains(&lost.to_string()), "{error}");
            } else {
                let moved = Tensor::from_vec([1, 4], vec![lost, 5, 5, lost]).expect("y");
                assert_eq!(answer.expect("an answer")[0].1, moved);
            }
        }
        let wide = try_load(engine, "wide_constant");
        if engine == EngineChoice::Rten {
            let refused = wide.expect_err("rten would saturate it").to_string();
            assert!(refused.contains("'big'") && refused.contains("needs ONNX Runtime"), "{refused}");
        } else {
            let x = Tensor::from_vec([1], vec![2i64]).expect("x");
            let sum = Tensor::from_vec([1], vec![2i64 + (1 << 40)]).expect("sum");
            assert_eq!(run_one(&wide.expect("a graph"), vec![("x", x)]), sum);
        }
    }
}

/// What rten says of a graph that it would compute otherwise.
fn refused_by_rten(name: &str, parts: &[&str]) {
    let error = try_load(EngineChoice::Rten, name).expect_err(name);
    assert!(matches!(error, EngineError::Unsupported(_)), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("needs ONNX Runtime") && parts.iter().all(|part| said.contains(part)), "{name}: {said}");
}

#[test]
fn what_32_bits_would_get_wrong_is_refused_or_right() {
    let longs = |values: &[i64]| Tensor::from_vec([values.len()], values.to_vec()).expect("longs");
    let floats = |values: &[f32]| Tensor::from_vec([values.len()], values.to_vec()).expect("floats");
    let truths = Tensor::new(DataType::Bool, [3], Bytes::from_static(&[1, 0, 1])).expect("truths");
    // The inputs, what comes out, and what the refusal names.
    let cases = [
        ("square_int64", longs(&[100_000, -3]), longs(&[10_000_000_000, 9]), ["'squared'", "Mul", "INT64"]),
        ("float_to_int64", floats(&[3e9, -1.5]), longs(&[3_000_000_000, -1]), ["'y'", "Cast", "INT64"]),
        ("float_to_bool", floats(&[0.5, 0.0, -2.0]), truths, ["'y'", "Cast", "BOOL"]),
        ("int64_through_bool", longs(&[7592, 0]), floats(&[1.0, 0.0]), ["'y'", "Cast", "BOOL"]),
        ("half_inside", floats(&[65_520.0, 1.0]), floats(&[f32::INFINITY, 1.0]), ["'half'", "Cast", "FLOAT16"]),
        ("double_inside", floats(&[0.0, 1.0]), floats(&[1e-9, 1.000_000_1e-9]), ["'little'", "weight", "DOUBLE"]),
    ];
    for (name, x, y, named) in cases {
        for engine in backends() {
            if engine == EngineChoice::Rten {
                refused_by_rten(name, &named);
                continue;
            }
            let answer = run_one(&load(engine, name), vec![("x", x.clone())]);
            match (answer.values::<f32>(), y.values::<f32>()) {
                (Some(answer), Some(y)) => {
                    let near = |(a, b): (&f32, &f32)| a == b || (a - b).abs() < 1e-6 * b.abs();
                    assert!(answer.iter().zip(y.iter()).all(near), "{name}: {answer:?}");
                }
                _ => assert_eq!(answer, y, "{name}"),
            }
        }
    }
    refused_by_rten("add_int64", &["'sum'", "Add", "INT64"]);
    for engine in backends().into_iter().filter(|engine| *engine != EngineChoice::Rten) {
        let one = |n: i64| Tensor::from_vec([1, 1], vec![n]).expect("a number");
        let graph = load(engine, "add_int64");
        assert_eq!(run_one(&graph, vec![("a", one(i32::MAX.into())), ("b", one(1))]), one(1 << 31));
    }
}

#[test]
fn integers_of_64_bits_that_stay_within_32_are_the_same_everywhere() {
    for engine in backends() {
        let graph = load(engine, "bounded_int64");
        let longs = |values: &[i64]| Tensor::from_vec([values.len()], values.to_vec()).expect("longs");
        let x = Tensor::from_vec([2, 3], vec![1f32, 2., -3., 0., -1., -2.]).expect("x");
        let labels = longs(&[i64::from(i32::MIN) + 1, 1]);
        let outputs = run(&graph, vec![("x", x), ("labels", labels)]).expect("an answer");
        let truths = Tensor::new(DataType::Bool, [2], Bytes::from_static(&[1, 0])).expect("truths");
        let expected = [
            ("sizes", longs(&[5, 7])),
            ("places", longs(&[2, 1])),
            ("counts", longs(&[2, 0])),
            // A remainder has the sign of what is divided by.
            ("rests", longs(&[i64::from(i32::MIN + 1).rem_euclid(7), 1])),
            ("halves", longs(&[i64::from(i32::MIN + 1) / 2, 0])),
            ("half_length", longs(&[1])),
            ("not_one", truths),
        ];
        assert_eq!(outputs, expected.map(|(name, tensor)| (name.to_owned(), tensor)), "{engine:?}");
    }
}

#[test]
fn masks_of_any_integers_are_the_same_everywhere() {
    let truths = |values: &'static [u8]| Tensor::new(DataType::Bool, [3], Bytes::from_static(values)).expect("truths");
    let floats = |values: [f32; 3]| Tensor::from_vec([3], values.to_vec()).expect("floats");
    for engine in backends() {
        let mask = Tensor::from_vec([3], vec![5i64, 0, -1]).expect("a mask");
        let inputs = vec![("mask", mask), ("x", floats([1.0, 2.0, 3.0]))];
        let outputs = run(&load(engine, "mask_int64"), inputs).expect("an answer");
        let expected =
            [("kept", truths(&[1, 0, 1])), ("left_out", truths(&[0, 1, 0])), ("masked", floats([1.0, 0.0, 3.0]))];
        assert_eq!(outputs, expected.map(|(name, tensor)| (name.to_owned(), tensor)), "{engine:?}");
    }
}

#[test]
fn what_rten_does_not_compute_with_8_bits_is_refused_when_it_loads() {
    refused_by_rten("add_uint8", &["'y'", "Add", "UINT8"]);
    refused_by_rten("concat_uint8", &["'y'", "Concat", "UINT8"]);
    let bytes = |values: &[u8]| Tensor::from_vec([values.len()], values.to_vec()).expect("bytes");
    for engine in backends().into_iter().filter(|engine| *engine != EngineChoice::Rten) {
        let inputs = vec![("a", bytes(&[1, 200])), ("b", bytes(&[255, 0]))];
        assert_eq!(run_one(&load(engine, "concat_uint8"), inputs), bytes(&[1, 200, 255, 0]));
    }
    // What is quantised goes on.
    load(EngineChoice::Rten, "dynamic_quantization");
    load(EngineChoice::Rten, "quantised_numbers");
}

#[test]
fn weights_of_halves_that_a_graph_widens_itself_are_the_same_everywhere() {
    let halves = |values: [f32; 2]| values.map(|value| f16::from_f32(value).to_f32());
    let (weights, table) = ([[0.1, 65504.0], [-6e-8, 1.0], [2.0, 1.0 / 3.0]].map(halves), [[0.2, -0.7], [1024.0, 0.0]]);
    let (x, rows) = ([[1f32, 2.0, -3.0], [0.5, 1e6, 0.25]], [1i64, 0]);
    let expected: Vec<f32> = (0..4)
        .map(|at| {
            let (row, column) = (at / 2, at % 2);
            let product: f32 = (0..3).map(|k| x[row][k] * weights[k][column]).sum();
            product + halves(table[rows[row] as usize])[column]
        })
        .collect();
    for engine in backends() {
        let x = Tensor::from_vec([2, 3], x.concat()).expect("x");
        let rows = Tensor::from_vec([2], rows.to_vec()).expect("rows");
        let answer = run_one(&load(engine, "half_weights"), vec![("x", x), ("rows", rows)]);
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
        let values = answer.values::<f32>().expect("floats");
        assert!(
            values.len() == 4 && values.iter().zip(&expected).all(near),
            "{engine:?}: {values:?}, not {expected:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_loop_that_counts_its_turns_is_the_same_everywhere(limit in -5i64..2_000, step in -8i8..8) {
        static LOADED: OnceLock<Vec<(EngineChoice, Graph)>> = OnceLock::new();
        let loaded = || backends().into_iter().map(|engine| (engine, load(engine, "counted_turns"))).collect();
        for (engine, graph) in LOADED.get_or_init(loaded) {
            let inputs = vec![
                ("limit", Tensor::from_vec([0usize; 0], vec![limit]).expect("limit")),
                ("step", Tensor::from_vec([0usize; 0], vec![f32::from(step)]).expect("step")),
            ];
            let outputs = run(graph, inputs).expect("an answer");
            let turns = limit.max(0);
            let sum = turns as f32 * f32::from(step);
            prop_assert_eq!(&*outputs[0].1.values::<i64>().expect("turns"), &[turns][..], "{:?}", engine);
            prop_assert_eq!(&*outputs[1].1.values::<f32>().expect("y"), &[sum][..], "{:?}", engine);
        }
    }
}

#[test]
fn bad_jobs_are_the_callers_error_and_do_not_run() {
    for engine in backends() {
        let graph = load(engine, "add_fp32");
        let matrix = |shape: &[usize]| Tensor::from_vec(shape, vec![1f32; shape.iter().product()]).expect("a matrix");
        let cases = [
            (vec![("a", matrix(&[1, 1]))], "'b' is missing"),
            (vec![("a", matrix(&[1, 1])), ("b", matrix(&[1, 1])), ("c", matrix(&[1, 1]))], "unknown input 'c'"),
            (vec![("a", matrix(&[1, 1])), ("b", matrix(&[1]))], "'b' has 2 dimensions, not 1"),
            (vec![("a", matrix(&[1, 1])), ("b", matrix(&[1, 2]))], "dimension 'M' is 1 in input 'a' and 2"),
            (vec![("a", matrix(&[1, 1])), ("b", Tensor::from_vec([1, 1], vec![1i32]).expect("b"))], "FP32, not INT32"),
        ];
        for (inputs, why) in cases {
            let error = run(&graph, inputs).expect_err(why);
            assert_eq!(error.fault(), Fault::Caller);
            assert!(error.to_string().contains(why), "{error}");
        }
        assert_eq!(graph.counts().executions, 0);
    }
}

#[test]
fn a_run_that_fails_is_an_error_and_the_graph_lives_on() {
    for engine in backends() {
        let graph = load(engine, "divide");
        let number = |n: i32| Tensor::from_vec([1], vec![n]).expect("a number");
        let error = run(&graph, vec![("a", number(1)), ("b", number(0))]).expect_err("division by zero");
        assert!(matches!(error, EngineError::Failed(_)), "{error:?}");
        assert!(!error.to_string().contains("/onnxruntime"), "{error}");
        assert_eq!(run_one(&graph, vec![("a", number(7)), ("b", number(2))]), number(3));
        let counts = graph.counts();
        assert_eq!((counts.executions, counts.inferences, counts.failures), (2, 1, 1));
        assert!(counts.compute_ns > 0);
    }
}

#[test]
fn metadata_names_what_runs() {
    for engine in backends() {
        let graph = load(engine, "tiny");
        let info = graph.info();
        let name = if engine == EngineChoice::Rten { "rten" } else { "onnxruntime" };
        assert_eq!((info.engine.as_str(), info.provider.as_str()), (name, "CPU"));
        assert!(info.nodes.is_empty(), "{:?}", info.nodes);
        assert_eq!((info.sessions, info.threads), (1, 1));
        assert!(info.version.split('.').count() == 3, "{}", info.version);
        assert_eq!(graph.weight_bytes(), 4 * (16 * 32 + 32 + 32 * 4 + 4));
    }
}

#[test]
fn engines_agree_on_a_net_and_rows_stay_apart() {
    let rows = |engine| {
        let graph = load(engine, "tiny");
        let mut random = 1u32;
        let mut next = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let inputs: Vec<Vec<f32>> = (0..64).map(|_| (0..16).map(|_| next()).collect()).collect();
        let alone: Vec<Vec<f32>> = inputs
            .iter()
            .map(|row| {
                let tensor = Tensor::from_vec([1, 16], row.clone()).expect("a row");
                run_one(&graph, vec![("x", tensor)]).values::<f32>().expect("scores").to_vec()
            })
            .collect();
        let tensor = Tensor::from_vec([64, 16], inputs.concat()).expect("rows");
        let together = run_one(&graph, vec![("x", tensor)]);
        let together = together.values::<f32>().expect("scores").chunks(4).map(<[f32]>::to_vec).collect::<Vec<_>>();
        for (a, b) in alone.iter().flatten().zip(together.iter().flatten()) {
            assert!((a - b).abs() < 1e-5, "{a} alone, {b} together");
        }
        alone
    };
    let answers: Vec<_> = backends().into_iter().map(rows).collect();
    for (a, b) in answers[0].iter().flatten().zip(answers[answers.len() - 1].iter().flatten()) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn sums_of_any_shape_are_right(rows in 0..40usize, columns in 0..40usize, seed: u32) {
        for engine in backends() {
            let graph = load(engine, "add_fp32");
            let value = |i: usize, k: u32| (seed.wrapping_mul(k).wrapping_add(i as u32) % 1000) as f32;
            let make = |k| (0..rows * columns).map(|i| value(i, k)).collect::<Vec<_>>();
            let (a, b) = (make(3), make(7));
            let sum = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            let tensor = |v| Tensor::from_vec([rows, columns], v).expect("a matrix");
            prop_assert_eq!(run_one(&graph, vec![("b", tensor(b)), ("a", tensor(a))]), tensor(sum));
        }
    }
}
