//! Tensors from any bytes: what is made keeps its promises, whatever it is read as.
#![no_main]

use libfuzzer_sys::fuzz_target;
use windrose_engine::{DataType, Tensor};

fuzz_target!(|data: &[u8]| {
    let [kind, rank, rest @ ..] = data else { return };
    let rank = usize::from(*rank % 5);
    let Some((dims, rest)) = rest.split_at_checked(8 * rank) else { return };
    let dims = dims.chunks(8).map(|d| d.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)));
    let datatype = DataType::ALL[usize::from(*kind) % DataType::ALL.len()];
    let Ok(tensor) = Tensor::new(datatype, dims.collect::<Vec<_>>(), rest.to_vec().into()) else { return };
    if let Some(width) = datatype.width() {
        assert_eq!(tensor.len() * width, rest.len());
    } else {
        let strings: Vec<_> = tensor.strings().collect();
        assert_eq!(strings.len(), tensor.len());
        assert_eq!(Tensor::from_strings(tensor.shape(), &strings).as_ref(), Ok(&tensor));
    }
    for other in DataType::ALL {
        match tensor.clone().reinterpret(other) {
            Ok(read) => {
                assert!(datatype.stands_for(other));
                assert_eq!(read.data(), tensor.data());
                let back = read.reinterpret(datatype).expect("the bytes were of this type");
                assert_eq!(back.data(), tensor.data());
            }
            Err(_) => assert_ne!(other, datatype),
        }
    }
});
