//! The tensor that travels through every stage: a type, a shape and shared, immutable bytes.

mod rows;

use std::borrow::Cow;

use bytes::Bytes;

use crate::{DataType, Element};

/// Why bytes do not make a tensor of a type and shape.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TensorError {
    /// The product of the dimensions does not fit in memory's address range.
    #[error("the shape {0:?} has too many elements")]
    TooLarge(Vec<usize>),
    /// Not as many bytes as type and shape ask for.
    #[error("{datatype} of shape {shape:?} takes {expected} bytes, not {actual}")]
    Length { datatype: DataType, shape: Vec<usize>, expected: usize, actual: usize },
    /// Byte strings whose length prefixes do not add up to the data.
    #[error("byte string {index} of {count} is truncated, or bytes are left over")]
    Strings { index: usize, count: usize },
    /// A boolean that is neither 0 nor 1.
    #[error("a BOOL element is {0}, not 0 or 1")]
    Bool(u8),
    /// Neither type carries the other.
    #[error("{from} cannot stand for {to}")]
    Carrier { from: DataType, to: DataType },
}

/// A typed, shaped, immutable block of memory. Cloning shares it.
///
/// Numbers are little-endian and row-major, as in the protocol's binary extension. Byte strings are each a
/// little-endian `u32` length and the bytes. The memory need not be aligned: a slice of a request body is a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    datatype: DataType,
    shape: Box<[usize]>,
    data: Bytes,
}

impl Tensor {
    /// A tensor over `data`, which must hold just what `datatype` and `shape` ask for.
    ///
    /// # Errors
    /// When the length differs, a string's prefix overruns, or a boolean is neither 0 nor 1.
    pub fn new(datatype: DataType, shape: impl Into<Box<[usize]>>, data: Bytes) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        let count = element_count(&shape)?;
        match datatype.width() {
            Some(width) => {
                let expected = count.checked_mul(width).ok_or_else(|| TensorError::TooLarge(shape.to_vec()))?;
                if expected != data.len() {
                    let actual = data.len();
                    return Err(TensorError::Length { datatype, shape: shape.into(), expected, actual });
                }
            }
            None => check_strings(&data, count)?,
        }
        if datatype == DataType::Bool
            && let Some(bad) = data.iter().find(|b| **b > 1)
        {
            return Err(TensorError::Bool(*bad));
        }
        Ok(Tensor { datatype, shape, data })
    }

    /// A tensor that takes over a vector, without copying it.
    ///
    /// # Errors
    /// When the vector's length is not the product of the dimensions.
    pub fn from_vec<T: Element>(shape: impl Into<Box<[usize]>>, values: Vec<T>) -> Result<Tensor, TensorError> {
        Tensor::new(T::DATATYPE, shape, Bytes::from_owner(Owned(values)))
    }

    /// A tensor of byte strings.
    ///
    /// # Errors
    /// When there are not as many strings as the shape says, or one is over 4 GiB.
    pub fn from_strings<S: AsRef<[u8]>>(shape: impl Into<Box<[usize]>>, strings: &[S]) -> Result<Tensor, TensorError> {
        let mut data = Vec::with_capacity(strings.iter().map(|s| s.as_ref().len() + 4).sum());
        for (index, s) in strings.iter().enumerate() {
            let s = s.as_ref();
            let length = u32::try_from(s.len()).map_err(|_| TensorError::Strings { index, count: strings.len() })?;
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(s);
        }
        Tensor::new(DataType::Bytes, shape, data.into())
    }

    /// The type of the elements.
    pub fn datatype(&self) -> DataType {
        self.datatype
    }

    /// The dimensions, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The memory, in the layout that the type's documentation gives.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The number of elements: the product of the dimensions.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as values; borrowed when the memory is aligned for `T`. `None` when `T` is another type.
    pub fn values<T: Element>(&self) -> Option<Cow<'_, [T]>> {
        if T::DATATYPE != self.datatype {
            return None;
        }
        Some(match bytemuck::try_cast_slice(&self.data) {
            Ok(values) => Cow::Borrowed(values),
            Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(&self.data)),
        })
    }

    /// The byte strings, in order. Empty for any other type.
    pub fn strings(&self) -> impl Iterator<Item = Bytes> + '_ {
        let mut rest = if self.datatype == DataType::Bytes { self.data.clone() } else { Bytes::new() };
        std::iter::from_fn(move || {
            let prefix = rest.get(..4)?.try_into().ok()?;
            let _ = rest.split_to(4);
            Some(rest.split_to((u32::from_le_bytes(prefix) as usize).min(rest.len())))
        })
    }

    /// The same memory read as another type, of which one is the other's [carrier](DataType::carrier): how a `wasi:nn`
    /// tensor, whose types are fewer, stands for what a graph declares, and the other way round. The shape stays, but
    /// for byte strings: their carrier is a vector of all their bytes, and read back they are a vector of strings.
    ///
    /// # Errors
    /// When neither type carries the other, or the bytes are not values of the other type.
    pub fn reinterpret(self, to: DataType) -> Result<Tensor, TensorError> {
        let from = self.datatype;
        if to == from {
            return Ok(self);
        }
        if !from.stands_for(to) {
            return Err(TensorError::Carrier { from, to });
        }
        let shape = match (from, to) {
            (DataType::Bytes, _) => Box::from([self.data.len()]),
            // No strings at all keep the shape that says so.
            (_, DataType::Bytes) if self.is_empty() => self.shape,
            (_, DataType::Bytes) => Box::from([count_strings(&self.data)?]),
            _ => self.shape,
        };
        Tensor::new(to, shape, self.data)
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    /// When the shape has another number of elements.
    pub fn reshape(self, shape: impl Into<Box<[usize]>>) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        if element_count(&shape)? != self.len() {
            let width = self.datatype.width().unwrap_or(1);
            let (expected, actual) = (element_count(&shape)?.saturating_mul(width), self.data.len());
            return Err(TensorError::Length { datatype: self.datatype, shape: shape.into(), expected, actual });
        }
        Ok(Tensor { shape, ..self })
    }
}

/// How many length-prefixed strings `data` is made of.
fn count_strings(data: &[u8]) -> Result<usize, TensorError> {
    let (mut rest, mut index) = (data, 0);
    while !rest.is_empty() {
        let error = || TensorError::Strings { index, count: index + 1 };
        let (prefix, tail) = rest.split_first_chunk::<4>().ok_or_else(error)?;
        rest = tail.get(u32::from_le_bytes(*prefix) as usize..).ok_or_else(error)?;
        index += 1;
    }
    Ok(index)
}

/// The product of the dimensions.
fn element_count(shape: &[usize]) -> Result<usize, TensorError> {
    shape
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d))
        .filter(|n| *n <= isize::MAX as usize)
        .ok_or_else(|| TensorError::TooLarge(shape.to_vec()))
}

/// Whether `data` is just `count` length-prefixed strings.
fn check_strings(data: &[u8], count: usize) -> Result<(), TensorError> {
    let mut rest = data;
    for index in 0..count {
        let error = || TensorError::Strings { index, count };
        let (prefix, tail) = rest.split_first_chunk::<4>().ok_or_else(error)?;
        rest = tail.get(u32::from_le_bytes(*prefix) as usize..).ok_or_else(error)?;
    }
    if rest.is_empty() { Ok(()) } else { Err(TensorError::Strings { index: count, count }) }
}

/// A vector seen as its bytes, for `Bytes::from_owner`.
struct Owned<T>(Vec<T>);

impl<T: Element> AsRef<[u8]> for Owned<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;

    /// Bytes at an odd address, whatever the allocator does.
    fn unaligned(data: &[u8]) -> Bytes {
        let mut padded = vec![0u8; 1];
        padded.extend_from_slice(data);
        Bytes::from(padded).slice(1..)
    }

    #[test]
    fn a_scalar_holds_one_element() {
        let scalar = Tensor::from_vec([], vec![7i64]).expect("a scalar");
        assert_eq!((scalar.len(), scalar.shape()), (1, &[][..]));
        assert_eq!(scalar.values::<i64>().as_deref(), Some(&[7][..]));
        assert_eq!(scalar.values::<i32>(), None);
    }

    #[test]
    fn an_empty_dimension_holds_none() {
        let empty = Tensor::new(DataType::Fp32, [3, 0, 2], Bytes::new()).expect("no elements");
        assert!(empty.is_empty());
        assert_eq!(empty.values::<f32>().as_deref(), Some(&[][..]));
    }

    #[test]
    fn lengths_and_overflows_are_refused() {
        let wrong = Tensor::new(DataType::Fp32, [2, 2], Bytes::from_static(&[0; 15]));
        assert!(matches!(wrong, Err(TensorError::Length { expected: 16, actual: 15, .. })));
        for shape in [vec![usize::MAX, 2], vec![usize::MAX / 2 + 1], vec![1 << 31, 1 << 31, 4]] {
            assert!(matches!(Tensor::new(DataType::Uint8, shape, Bytes::new()), Err(TensorError::TooLarge(_))));
        }
        let wide = Tensor::new(DataType::Fp64, [isize::MAX as usize], Bytes::new());
        assert!(matches!(wide, Err(TensorError::TooLarge(_))));
    }

    #[test]
    fn booleans_are_zero_or_one() {
        assert!(Tensor::new(DataType::Bool, [3], Bytes::from_static(&[0, 1, 1])).is_ok());
        let bad = Tensor::new(DataType::Bool, [3], Bytes::from_static(&[0, 1, 2]));
        assert_eq!(bad, Err(TensorError::Bool(2)));
    }

    #[test]
    fn strings_must_add_up() {
        let good = Tensor::from_strings([2], &[&b"ab"[..], b""]).expect("two strings");
        assert_eq!(good.strings().collect::<Vec<_>>(), [&b"ab"[..], b""]);
        let bytes = good.data().clone();
        for (shape, data) in [
            (1, bytes.clone()),
            (3, bytes.clone()),
            (2, bytes.slice(..bytes.len() - 1)),
            (1, Bytes::from_static(&[255, 255, 255, 255, 1])),
            (1, Bytes::from_static(&[1, 0, 0])),
        ] {
            assert!(matches!(Tensor::new(DataType::Bytes, [shape], data), Err(TensorError::Strings { .. })));
        }
        assert_eq!(Tensor::from_vec([2], vec![1u8, 2]).expect("bytes").strings().count(), 0);
    }

    #[test]
    fn carriers_are_read_as_declared_and_back() {
        let bits = Tensor::from_vec([2], vec![f16::from_bits(0xffff), f16::from_bits(1)]).expect("two halves");
        let shorts = bits.clone().reinterpret(DataType::Int16).expect("a carrier");
        assert_eq!(shorts.values::<i16>().as_deref(), Some(&[-1, 1][..]));
        assert_eq!(shorts.reinterpret(DataType::Fp16).expect("back"), bits);
        let refused = Tensor::from_vec([1], vec![bf16::ONE]).expect("one").reinterpret(DataType::Int16);
        assert_eq!(refused, Err(TensorError::Carrier { from: DataType::Bf16, to: DataType::Int16 }));
        let not_a_bool = Tensor::from_vec([1], vec![9u8]).expect("one").reinterpret(DataType::Bool);
        assert_eq!(not_a_bool, Err(TensorError::Bool(9)));
    }

    #[test]
    fn strings_travel_as_bytes() {
        let words = Tensor::from_strings([2, 1], &["windrose", "north"]).expect("two strings");
        let carried = words.clone().reinterpret(DataType::Uint8).expect("a carrier");
        assert_eq!(carried.shape(), [4 + 8 + 4 + 5]);
        let back = carried.reinterpret(DataType::Bytes).expect("strings");
        assert_eq!(back.shape(), [2]);
        assert_eq!(back.reshape([2, 1]).expect("the shape"), words);
        let cut = Tensor::from_vec([3], vec![9u8, 0, 0]).expect("bytes").reinterpret(DataType::Bytes);
        assert!(matches!(cut, Err(TensorError::Strings { index: 0, .. })));
    }

    proptest! {
        #[test]
        fn numbers_survive_any_alignment(values: Vec<f64>) {
            let tensor = Tensor::from_vec([values.len()], values.clone()).expect("a vector");
            prop_assert!(matches!(tensor.values::<f64>(), Some(Cow::Borrowed(_))), "aligned memory is not copied");
            let moved = Tensor::new(DataType::Fp64, [values.len()], unaligned(tensor.data())).expect("the same");
            let read = moved.values::<f64>().expect("doubles");
            prop_assert!(read.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
            prop_assert_eq!(read.len(), values.len());
        }

        #[test]
        fn strings_survive(strings: Vec<Vec<u8>>) {
            let tensor = Tensor::from_strings([strings.len()], &strings).expect("strings");
            prop_assert_eq!(tensor.strings().map(|s| s.to_vec()).collect::<Vec<_>>(), strings.clone());
            let back = tensor.clone().reinterpret(DataType::Uint8).and_then(|t| t.reinterpret(DataType::Bytes));
            prop_assert_eq!(back, Ok(tensor));
        }

        #[test]
        fn any_bytes_are_a_tensor_or_an_error(kind in 0..14usize, shape in prop::collection::vec(0..9usize, 0..4), data: Vec<u8>) {
            let datatype = DataType::ALL[kind];
            let made = Tensor::new(datatype, shape.clone(), data.clone().into());
            if let Ok(tensor) = made {
                prop_assert_eq!(tensor.len(), shape.iter().product::<usize>());
                prop_assert_eq!(&tensor.data()[..], &data[..]);
                if datatype == DataType::Bytes {
                    prop_assert_eq!(tensor.strings().count(), tensor.len());
                }
            }
        }
    }
}
