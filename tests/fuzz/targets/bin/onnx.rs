//! The bounded reader of ONNX files: any bytes are a graph that keeps the reader's promises, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use windrose_engine::{DataType, Dim, onnx};

fuzz_target!(|data: &[u8]| {
    let Ok(model) = onnx::read(data) else { return };
    assert_eq!(onnx::inspect(data).as_ref(), Ok(&model.spec));
    assert!(!model.spec.outputs.is_empty());
    assert!(model.nodes <= onnx::MAX_NODES && model.nodes <= data.len());
    for specs in [&model.spec.inputs, &model.spec.outputs] {
        assert!(specs.len() <= onnx::MAX_VALUES);
        for (i, spec) in specs.iter().enumerate() {
            assert!(!spec.name.is_empty() && spec.name.len() <= onnx::MAX_NAME && !spec.name.contains('\0'));
            assert!(specs[..i].iter().all(|other| other.name != spec.name));
            assert!(DataType::ALL.contains(&spec.datatype));
            let dims = spec.shape.as_deref().unwrap_or_default();
            assert!(dims.len() <= onnx::MAX_RANK);
            let fixed = dims.iter().filter_map(|d| if let Dim::Fixed(n) = d { Some(*n) } else { None });
            // Zero ends an overflow wherever it stands, so it is left out.
            let size = fixed.filter(|n| *n > 0).try_fold(1u64, u64::checked_mul);
            assert!(size.is_some() || dims.contains(&Dim::Fixed(0)));
        }
    }
});
