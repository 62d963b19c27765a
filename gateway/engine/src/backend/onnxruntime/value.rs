//! Values of ONNX Runtime: tensors that borrow an input's memory, and outputs whose memory we take over.

use std::any::Any;
use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use bytes::Bytes;
use ort::sys::{
    ONNXTensorElementDataType as OrtType, OrtAllocatorType, OrtMemType, OrtMemoryInfo, OrtStatusPtr, OrtValue,
};

use super::{failed, unavailable};
use crate::{DataType, EngineError, Tensor};

/// Outputs up to this many bytes are copied: that is cheaper than keeping their value.
const COPIED: usize = 2_048;

/// A value. `'a` is the memory that it borrows.
pub(super) struct Value<'a> {
    value: NonNull<OrtValue>,
    borrowed: PhantomData<&'a [u8]>,
}

#[expect(unsafe_code, reason = "the pointer is owned")]
// SAFETY: nobody else holds the value, and the library lets any thread read and release one.
unsafe impl Send for Value<'_> {}
#[expect(unsafe_code, reason = "the pointer is owned")]
// SAFETY: through a shared reference values are only read.
unsafe impl Sync for Value<'_> {}

impl Drop for Value<'_> {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "ONNX Runtime is called through its C interface")]
        // SAFETY: the value is ours and is released once.
        unsafe {
            (ort::api().ReleaseValue)(self.value.as_ptr());
        }
    }
}

/// Where inputs lie, as the library wants to be told.
pub(super) struct CpuMemory(NonNull<OrtMemoryInfo>);

#[expect(unsafe_code, reason = "the pointer is owned")]
// SAFETY: the description is never changed after it was made.
unsafe impl Send for CpuMemory {}
#[expect(unsafe_code, reason = "the pointer is owned")]
// SAFETY: as above.
unsafe impl Sync for CpuMemory {}

impl CpuMemory {
    pub fn new() -> Result<CpuMemory, EngineError> {
        let mut memory = null_mut();
        #[expect(unsafe_code, reason = "ONNX Runtime is called through its C interface")]
        // SAFETY: the out pointer is valid.
        let status = unsafe {
            let (allocator, kind) = (OrtAllocatorType::OrtDeviceAllocator, OrtMemType::OrtMemTypeDefault);
            (ort::api().CreateCpuMemoryInfo)(allocator, kind, &mut memory)
        };
        check(status)?;
        NonNull::new(memory).map(CpuMemory).ok_or_else(none)
    }
}

impl Drop for CpuMemory {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "ONNX Runtime is called through its C interface")]
        // SAFETY: it is ours and is released once.
        unsafe {
            (ort::api().ReleaseMemoryInfo)(self.0.as_ptr());
        }
    }
}

/// The providers of the library, by their short names (`CPU`, `CUDA`).
pub(super) fn providers() -> Result<Vec<String>, EngineError> {
    let (mut names, mut count) = (null_mut(), 0);
    #[expect(unsafe_code, reason = "ONNX Runtime is called through its C interface")]
    // SAFETY: the out pointers are valid; the library returns `count` C strings, which are copied before they are
    // released, once.
    unsafe {
        check((ort::api().GetAvailableProviders)(&mut names, &mut count))?;
        let found = (0..usize::try_from(count).unwrap_or(0)).map(|i| short(CStr::from_ptr(*names.add(i)))).collect();
        check((ort::api().ReleaseAvailableProviders)(names, count))?;
        Ok(found)
    }
}

/// A provider's short name: `CUDA`, where the library says `CUDAExecutionProvider`.
pub(super) fn short(name: &CStr) -> String {
    let name = name.to_string_lossy();
    name.strip_suffix("ExecutionProvider").unwrap_or(&name).to_owned()
}

/// A tensor's memory where the library can read it: at an address that suits its elements.
pub(super) fn aligned(tensor: &Tensor) -> Memory {
    let data = tensor.data();
    let width = tensor.datatype().width().unwrap_or(1);
    if (data.as_ptr() as usize).is_multiple_of(width) {
        return Memory::Shared(data.clone());
    }
    // Eight bytes are the widest element.
    let mut words = vec![0u64; data.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut words)[..data.len()].copy_from_slice(data);
    Memory::Moved(words, data.len())
}

/// An input's memory during a run.
pub(super) enum Memory {
    Shared(Bytes),
    /// Moved to where it is aligned; the length in bytes.
    Moved(Vec<u64>, usize),
}

impl Memory {
    fn bytes(&self) -> &[u8] {
        match self {
            Memory::Shared(bytes) => bytes,
            Memory::Moved(words, length) => &bytemuck::cast_slice(words)[..*length],
        }
    }
}

impl<'a> Value<'a> {
    /// A value that the library made.
    ///
    /// # Safety
    /// `value` is null, or a value of the library that nobody else releases and that borrows no memory.
    #[expect(unsafe_code, reason = "takes over a pointer")]
    pub unsafe fn owned(value: *mut OrtValue) -> Option<Value<'static>> {
        NonNull::new(value).map(|value| Value { value, borrowed: PhantomData })
    }

    pub fn as_ptr(&self) -> *const OrtValue {
        self.value.as_ptr()
    }

    /// A tensor as an input. Numbers stay where they are; byte strings are copied.
    pub fn input(tensor: &Tensor, memory: &'a Memory, cpu: &CpuMemory) -> Result<Value<'a>, EngineError> {
        let shape: Vec<i64> = tensor.shape().iter().map(|d| *d as i64).collect();
        if tensor.datatype() == DataType::Bytes {
            return Value::strings(tensor, &shape);
        }
        let data = memory.bytes();
        let mut value = null_mut();
        #[expect(unsafe_code, reason = "ONNX Runtime is called through its C interface")]
        // SAFETY: `data` holds the elements of type and shape, as every tensor does, at a suitable address, and
        // outlives the value; the library only reads inputs.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                cpu.0.as_ptr(),
                data.as_ptr().cast_mut().cast(),
                data.len(),
                shape.as_ptr(),
                shape.len(),
                element(tensor.datatype()),
                &mut value,
            )
        };
        check(status)?;
        NonNull::new(value).map(|value| Value { value, borrowed: PhantomData }).ok_or_else(none)
    }

    fn strings(tensor: &Tensor, shape: &[i64]) -> Result<Value<'a>, EngineError> {
        let (mut allocator, mut value) = (null_mut(), null_mut());
        #[expect(unsafe_code, reason = "ONNX Runtime is called through its C interface")]
        // SAFETY: the default allocator lives as long as the process; the out pointers are valid.
        let made = unsafe {
            check((ort::api().GetAllocatorWithDefaultOptions)(&mut allocator))?;
            let kind = element(DataType::Bytes);
            check((ort::api().CreateTensorAsOrtValue)(allocator, shape.as_ptr(), shape.len(), kind, &mut value))?;
            Value::owned(value)
        };
        let made = made.ok_or_else(none)?;
        for (index, string) in tensor.strings().enumerate() {
            let mut buffer = null_mut();
            #[expect(unsafe_code, reason = "ONNX Runtime is called through its C interface")]
            // SAFETY: a tensor yields as many strings as its shape has elements, so the index is inside; the library
            // returns a buffer of the length that it was asked for, which nobody else writes.
            unsafe {
                let pointer = made.value.as_ptr();
                check((ort::api().GetResizedStringTensorElementBuffer)(pointer, index, string.len(), &mut buffer))?;
                std::ptr::copy_nonoverlapping(string.as_ptr(), buffer.cast(), string.len());
            }
        }
        Ok(made)
    }
}

impl Value<'static> {
    /// An output as a tensor of the declared type. `inputs` are those of the run, in case an output is one of them;
    /// `owner` keeps the session, in case it is one of the weights.
    pub fn into_tensor(self, declared: DataType, inputs: &[Memory], owner: &Owner) -> Result<Tensor, EngineError> {
        let (returned, shape) = self.type_and_shape()?;
        if returned != element(declared) {
            return Err(EngineError::Failed(format!(
                "ONNX Runtime returned {returned:?} for an output of type {declared}"
            )));
        }
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or_else(none)?;
        let data = match declared.width() {
            None => self.string_bytes(count)?,
            Some(width) => self.into_bytes(count.checked_mul(width).ok_or_else(none)?, inputs, owner)?,
        };
        let held = Tensor::new(declared, shape, data);
        held.map_err(|e| {
            EngineError::Failed(format!("ONNX Runtime returned an output that does not hold together: {e}"))
        })
    }

    fn type_and_shape(&self) -> Result<(OrtType, Vec<usize>), EngineError> {
        let mut info = null_mut();
        let (mut kind, mut rank) = (OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, 0);
        #[expect(unsafe_code, reason = "ONNX Runtime is called through its C interface")]
        // SAFETY: the value is a live one, and the library refuses it if it is no tensor; the description is read
        // before it is released, once; `dims` has room for as many dimensions as it is said to.
        unsafe {
            let api = ort::api();
            check((api.GetTensorTypeAndShape)(self.as_ptr(), &mut info))?;
            let kind = check((api.GetTensorElementType)(info, &mut kind)).map(|()| kind);
            let counted = check((api.GetDimensionsCount)(info, &mut rank));
            let mut dims = vec![0i64; rank];
            let read = check((api.GetDimensions)(info, dims.as_mut_ptr(), dims.len()));
            (api.ReleaseTensorTypeAndShapeInfo)(info);
            counted.and(read)?;
            let dims: Result<Vec<usize>, _> = dims.into_iter().map(usize::try_from).collect();
            Ok((kind?, dims.map_err(|_| none())?))
        }
    }

    /// The memory of numbers: copied where that is cheaper, or where it is an input's, else taken over.
    fn into_bytes(self, length: usize, inputs: &[Memory], owner: &Owner) -> Result<Bytes, EngineError> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let mut data = null_mut();
        #[expect(unsafe_code, reason = "ONNX Runtime is called through its C interface")]
        // SAFETY: the value is a live tensor of numbers.
        let status = unsafe { (ort::api().GetTensorMutableData)(self.value.as_ptr(), &mut data) };
        check(status)?;
        let data = NonNull::new(data.cast::<u8>()).ok_or_else(none)?;
        let start = data.as_ptr() as usize;
        let is_input = inputs.iter().any(|input| {
            let input = input.bytes().as_ptr_range();
            start < input.end as usize && start + length > input.start as usize
        });
        let output = OutputMemory { data, length, _value: self, _owner: Arc::clone(owner) };
        if length <= COPIED || is_input {
            return Ok(Bytes::copy_from_slice(output.as_ref()));
        }
        Ok(Bytes::from_owner(output))
    }

    /// Byte strings, each with its length prefix.
    fn string_bytes(&self, count: usize) -> Result<Bytes, EngineError> {
        if count == 0 {
            return Ok(Bytes::new());
        }
        let mut length = 0;
        #[expect(unsafe_code, reason = "ONNX Runtime is called through its C interface")]
        // SAFETY: the value is a live tensor of strings; `text` and `starts` are as long as they are said to be.
        let (text, starts) = unsafe {
            let api = ort::api();
            check((api.GetStringTensorDataLength)(self.as_ptr(), &mut length))?;
            let (mut text, mut starts) = (vec![0u8; length], vec![0usize; count]);
            let buffer = text.as_mut_ptr().cast();
            check((api.GetStringTensorContent)(self.as_ptr(), buffer, length, starts.as_mut_ptr(), count))?;
            (text, starts)
        };
        let ends = starts.iter().skip(1).copied().chain([length]);
        let mut data = Vec::with_capacity(length + 4 * count);
        for (start, end) in starts.iter().zip(ends) {
            let string = text.get(*start..end).ok_or_else(none)?;
            let prefix = u32::try_from(string.len()).map_err(|_| none())?;
            data.extend_from_slice(&prefix.to_le_bytes());
            data.extend_from_slice(string);
        }
        Ok(data.into())
    }
}

/// The memory of an output, and the value that owns it: the library frees it with the value, from whatever thread.
struct OutputMemory {
    data: NonNull<u8>,
    length: usize,
    _value: Value<'static>,
    _owner: Owner,
}

/// Whatever must outlive a run's outputs.
pub(super) type Owner = Arc<dyn Any + Send + Sync>;

#[expect(unsafe_code, reason = "the pointer is into the value that is owned beside it")]
// SAFETY: the value is `Send`, and the pointer is into its memory.
unsafe impl Send for OutputMemory {}
#[expect(unsafe_code, reason = "the pointer is into the value that is owned beside it")]
// SAFETY: the memory is only read.
unsafe impl Sync for OutputMemory {}

impl AsRef<[u8]> for OutputMemory {
    fn as_ref(&self) -> &[u8] {
        #[expect(unsafe_code, reason = "a slice of the value's memory")]
        // SAFETY: the library said that the tensor's elements begin here, `length` is what type and shape make them,
        // and the value keeps them; nobody writes an output after its run.
        unsafe {
            std::slice::from_raw_parts(self.data.as_ptr(), self.length)
        }
    }
}

/// The library's number of a type.
fn element(datatype: DataType) -> OrtType {
    match datatype {
        DataType::Bool => OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        DataType::Uint8 => OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DataType::Uint16 => OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DataType::Uint32 => OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DataType::Uint64 => OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DataType::Int8 => OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DataType::Int16 => OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DataType::Int32 => OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DataType::Int64 => OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DataType::Fp16 => OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DataType::Bf16 => OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        DataType::Fp32 => OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DataType::Fp64 => OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        DataType::Bytes => OrtType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
    }
}

/// A status of the library as a result.
pub(super) fn check(status: OrtStatusPtr) -> Result<(), EngineError> {
    #[expect(unsafe_code, reason = "takes over a pointer")]
    // SAFETY: each caller passes the status of a call that it has just made, once.
    let result = unsafe { ort::Error::result_from_status(status) };
    result.map_err(|e| failed("failed", &e))
}

/// Something that the library never returns.
fn none() -> EngineError {
    unavailable("ONNX Runtime returned something that is no tensor".into())
}
