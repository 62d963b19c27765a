//! Tensors: handles to memory of the host, and typed views of it.

use std::ops::Deref;

use bytemuck::Pod;

use crate::host::RawTensor;
use crate::strings::count;
use crate::{Error, Result, Strings};

/// The element types of `wasi:nn`. Types of the protocol that it lacks travel as the one of their width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// Half precision; also carries INT16 and UINT16.
    Fp16,
    /// Single precision.
    Fp32,
    /// Double precision.
    Fp64,
    /// Brain floating point.
    Bf16,
    /// Bytes; also carries BOOL (0 and 1), INT8, and byte strings, see [`Tensor::to_strings`].
    U8,
    /// 32-bit integers; also carries UINT32.
    I32,
    /// 64-bit integers; also carries UINT64.
    I64,
}

impl TensorType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            TensorType::U8 => 1,
            TensorType::Fp16 | TensorType::Bf16 => 2,
            TensorType::Fp32 | TensorType::I32 => 4,
            TensorType::Fp64 | TensorType::I64 => 8,
        }
    }
}

/// A Rust type that the elements of a tensor can be read and written as.
pub trait Element: Pod {
    /// How `wasi:nn` calls a tensor of these.
    const TYPE: TensorType;
}

macro_rules! elements {
    ($($rust:ty => $nn:ident),+ $(,)?) => {
        $(impl Element for $rust {
            const TYPE: TensorType = TensorType::$nn;
        })+
    };
}

elements! {
    f32 => Fp32, f64 => Fp64, u8 => U8, i8 => U8, i16 => Fp16, u16 => Fp16, i32 => I32, u32 => I32, i64 => I64, u64 => I64,
}

/// A tensor in the host's memory. Passing it on costs nothing; reading it copies it into the module.
#[derive(Debug)]
pub struct Tensor(pub(crate) RawTensor);

impl Tensor {
    /// A tensor of this shape (outermost dimension first) with a copy of these values.
    ///
    /// ```
    /// use windrose_guest::Tensor;
    /// let tensor = Tensor::new(&[2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0])?;
    /// assert_eq!(tensor.shape(), [2, 3]);
    /// # Ok::<(), windrose_guest::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the shape has another number of elements.
    pub fn new<T: Element>(shape: &[usize], values: &[T]) -> Result<Tensor> {
        Tensor::from_bytes(shape, T::TYPE, bytemuck::cast_slice(values))
    }

    /// A tensor of truth values.
    ///
    /// # Errors
    /// When the shape has another number of elements.
    pub fn from_bools(shape: &[usize], values: &[bool]) -> Result<Tensor> {
        let bytes: Vec<u8> = values.iter().map(|&value| u8::from(value)).collect();
        Tensor::from_bytes(shape, TensorType::U8, &bytes)
    }

    /// Byte strings as a tensor, which is how a graph takes them. It shows [`TensorType::U8`] and the shape of the
    /// strings.
    ///
    /// ```
    /// use windrose_guest::{Strings, Tensor};
    /// let words = Strings::row(["north", "west"]);
    /// let tensor = Tensor::from_strings(&words)?;
    /// assert_eq!(tensor.shape(), [2]);
    /// assert_eq!(tensor.to_strings()?, words);
    /// # Ok::<(), windrose_guest::Error>(())
    /// ```
    ///
    /// # Errors
    /// When a string is over 4 GiB.
    pub fn from_strings(strings: &Strings) -> Result<Tensor> {
        Ok(Tensor(RawTensor::new(&strings.shape, TensorType::U8, &strings.pack()?)))
    }

    /// A tensor from its bytes, little-endian and row-major.
    ///
    /// # Errors
    /// When the shape needs another number of bytes.
    pub fn from_bytes(shape: &[usize], ty: TensorType, data: &[u8]) -> Result<Tensor> {
        let wanted = shape.iter().try_fold(ty.size(), |bytes, &size| bytes.checked_mul(size));
        if wanted != Some(data.len()) {
            return Err(Error::internal(format!(
                "{} bytes do not fill a {ty:?} tensor of shape {shape:?}",
                data.len()
            )));
        }
        let dimensions = shape
            .iter()
            .map(|&size| u32::try_from(size).map_err(|_| Error::internal("a dimension is too large")))
            .collect::<Result<Vec<u32>>>()?;
        Ok(Tensor(RawTensor::new(&dimensions, ty, data)))
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> Vec<usize> {
        self.0.dimensions().into_iter().map(|size| size as usize).collect()
    }

    /// The type of the elements.
    pub fn element_type(&self) -> TensorType {
        self.0.ty()
    }

    /// The bytes, little-endian and row-major, copied from the host.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.data()
    }

    /// The values, copied from the host once and read in place.
    ///
    /// # Errors
    /// When the elements are of another type.
    pub fn read<T: Element>(&self) -> Result<Data<T>> {
        let ty = self.element_type();
        let sixteen_bits = T::TYPE == TensorType::Fp16 && ty == TensorType::Bf16;
        if ty != T::TYPE && !sixteen_bits {
            let wanted = std::any::type_name::<T>();
            return Err(Error::internal(format!("a tensor of {ty:?} cannot be read as {wanted}")));
        }
        let bytes = self.to_bytes();
        if ty == TensorType::U8 && count(self.shape().into_iter()) != Some(bytes.len()) {
            return Err(Error::internal("the tensor holds byte strings, not numbers: read it with `to_strings`"));
        }
        Ok(Data::new(bytes))
    }

    /// The values as a vector.
    ///
    /// # Errors
    /// When the elements are of another type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        Ok(self.read::<T>()?.into_vec())
    }

    /// The byte strings of a tensor that holds such: one that a graph returned for an output of type BYTES, say.
    ///
    /// # Errors
    /// When it holds numbers, or no strings of its shape.
    pub fn to_strings(&self) -> Result<Strings> {
        let (ty, shape) = (self.element_type(), self.0.dimensions());
        let bytes = if ty == TensorType::U8 { self.to_bytes() } else { Vec::new() };
        // Strings take four bytes each beside their own. None at all look like no numbers at all.
        let numbers = count(shape.iter().map(|&size| size as usize)) == Some(bytes.len()) && !bytes.is_empty();
        if ty != TensorType::U8 || numbers {
            return Err(Error::internal(format!("a tensor of {ty:?} numbers holds no byte strings")));
        }
        Strings::unpack(shape, &bytes)
    }

    /// The values as truth values, where any byte but 0 is true.
    ///
    /// # Errors
    /// When the elements are not single bytes.
    pub fn to_bools(&self) -> Result<Vec<bool>> {
        Ok(self.read::<u8>()?.iter().map(|&byte| byte != 0).collect())
    }

    /// Floating-point values of any width as single precision.
    ///
    /// ```
    /// use windrose_guest::{Tensor, TensorType};
    /// let half = Tensor::from_bytes(&[2], TensorType::Fp16, &[0x00, 0x3c, 0x00, 0xc0])?;
    /// assert_eq!(half.to_f32()?, [1.0, -2.0]);
    /// # Ok::<(), windrose_guest::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the elements are integers.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        Ok(match self.element_type() {
            TensorType::Fp32 => self.to_vec::<f32>()?,
            TensorType::Fp64 => self.read::<f64>()?.iter().map(|&value| value as f32).collect(),
            TensorType::Fp16 => self.read::<u16>()?.iter().map(|&bits| half_to_f32(bits)).collect(),
            TensorType::Bf16 => self.read::<u16>()?.iter().map(|&bits| f32::from_bits(u32::from(bits) << 16)).collect(),
            ty => return Err(Error::internal(format!("a tensor of {ty:?} holds no floating-point values"))),
        })
    }
}

/// IEEE half precision to single precision, exactly.
fn half_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let fraction = u32::from(bits & 0x3ff);
    match exponent {
        // Subnormal: fraction * 2^-24.
        0 => {
            let magnitude = fraction as f32 * f32::from_bits(0x3380_0000);
            if sign == 0 { magnitude } else { -magnitude }
        }
        0x1f => f32::from_bits(sign | 0x7f80_0000 | (fraction << 13)),
        _ => f32::from_bits(sign | ((exponent + 112) << 23) | (fraction << 13)),
    }
}

/// The values of a tensor; dereferences to a slice.
#[derive(Debug)]
pub struct Data<T: Element>(Storage<T>);

/// The host's bytes as they came where they are aligned, which they practically always are; else a copy.
#[derive(Debug)]
enum Storage<T> {
    Bytes(Vec<u8>),
    Values(Vec<T>),
}

impl<T: Element> Data<T> {
    fn new(bytes: Vec<u8>) -> Data<T> {
        match bytemuck::try_cast_slice::<u8, T>(&bytes) {
            Ok(_) => Data(Storage::Bytes(bytes)),
            Err(_) => Data(Storage::Values(bytemuck::pod_collect_to_vec(&bytes))),
        }
    }

    /// The values as a vector of their own.
    pub fn into_vec(self) -> Vec<T> {
        match self.0 {
            Storage::Bytes(bytes) => bytemuck::allocation::try_cast_vec(bytes)
                .unwrap_or_else(|(_, bytes)| bytemuck::pod_collect_to_vec(&bytes)),
            Storage::Values(values) => values,
        }
    }
}

impl<T: Element> Deref for Data<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Storage::Bytes(bytes) => bytemuck::cast_slice(bytes),
            Storage::Values(values) => values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_went_in() {
        let values = [1i64, -2, i64::MAX];
        let tensor = Tensor::new(&[3, 1], &values).unwrap();
        assert_eq!((tensor.shape(), tensor.element_type()), (vec![3, 1], TensorType::I64));
        assert_eq!(&*tensor.read::<i64>().unwrap(), &values);
        assert_eq!(tensor.to_vec::<u64>().unwrap(), [1, u64::MAX - 1, i64::MAX as u64]);
    }

    #[test]
    fn a_wrong_type_is_refused() {
        let tensor = Tensor::new(&[1], &[1.0f32]).unwrap();
        assert!(!tensor.read::<i32>().unwrap_err().is_invalid_input());
    }

    #[test]
    fn a_wrong_shape_is_refused() {
        assert!(Tensor::new(&[2], &[1.0f32]).is_err());
        assert!(Tensor::new(&[usize::MAX, 2], &[1.0f32]).is_err());
        assert!(Strings::new(&[2], vec![]).is_err());
        assert!(Strings::new(&[usize::MAX, 2], vec![]).is_err());
    }

    #[test]
    fn strings_and_numbers_are_told_apart() {
        let words = Strings::new(&[1, 2], vec![b"a".to_vec(), vec![]]).unwrap();
        let tensor = Tensor::from_strings(&words).unwrap();
        assert_eq!((tensor.shape(), tensor.element_type()), (vec![1, 2], TensorType::U8));
        assert_eq!(tensor.to_strings().unwrap(), words);
        for error in [tensor.to_vec::<u8>().unwrap_err(), tensor.to_bools().unwrap_err()] {
            assert!(error.message().contains("byte strings"), "{error}");
        }
        for numbers in [Tensor::new(&[4], &[0u8; 4]).unwrap(), Tensor::new(&[0], &[0f32; 0]).unwrap()] {
            assert!(numbers.to_strings().unwrap_err().message().contains("no byte strings"));
        }
        assert_eq!(Tensor::new(&[0, 2], &[0u8; 0]).unwrap().to_strings().unwrap().shape(), [0, 2]);
    }

    #[test]
    fn unaligned_bytes_are_copied() {
        for offset in 0..4 {
            let bytes: Vec<u8> = (0..12u8).collect();
            let data = Data::<u32>::new(bytes[offset..offset + 8].to_vec());
            assert_eq!(data.len(), 2);
            assert_eq!(data[0].to_le_bytes().as_slice(), &bytes[offset..offset + 4]);
        }
    }

    #[test]
    fn half_precision_is_exact() {
        let cases = [(0x0001u16, 2f32.powi(-24)), (0x8000, -0.0), (0x7bff, 65504.0), (0x3555, 0.333_251_95)];
        for (bits, value) in cases {
            assert_eq!(half_to_f32(bits).to_bits(), value.to_bits(), "{bits:#x}");
        }
        assert_eq!(half_to_f32(0xfc00), f32::NEG_INFINITY);
        assert!(half_to_f32(0x7e00).is_nan());
    }
}
