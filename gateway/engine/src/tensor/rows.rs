//! Rows: tensors put together along their first axis, and taken apart again.

use bytes::Bytes;

use super::Tensor;
use crate::DataType;

impl Tensor {
    /// The tensors one after the other along the first axis, copied once into memory of its own. `None` unless there is
    /// one, and all have the same type and the same shape past that axis.
    pub(crate) fn stack(parts: &[&Tensor]) -> Option<Tensor> {
        let first = parts.first()?;
        let (_, rest) = first.shape.split_first()?;
        let (mut rows, mut bytes) = (0usize, 0usize);
        for part in parts {
            let (own, inner) = part.shape.split_first()?;
            if part.datatype != first.datatype || inner != rest {
                return None;
            }
            rows = rows.checked_add(*own)?;
            bytes = bytes.checked_add(part.data.len())?;
        }
        let mut data = Vec::with_capacity(bytes);
        parts.iter().for_each(|part| data.extend_from_slice(&part.data));
        let shape = std::iter::once(rows).chain(rest.iter().copied()).collect();
        Some(Tensor { datatype: first.datatype, shape, data: data.into() })
    }

    /// Takes the tensor apart along its first axis into as many rows each, without copying: the pieces share its
    /// memory. `None` unless the rows add up to the first dimension.
    pub(crate) fn split(&self, rows: impl Iterator<Item = usize>) -> Option<Vec<Tensor>> {
        let (&all, rest) = self.shape.split_first()?;
        let row: usize = rest.iter().product();
        let (mut done, mut at) = (0usize, 0usize);
        let mut pieces = Vec::new();
        for count in rows {
            done = done.checked_add(count).filter(|done| *done <= all)?;
            let bytes = match self.datatype.width() {
                Some(width) => count * row * width,
                None => strings_length(self.data.get(at..)?, count * row)?,
            };
            let shape = std::iter::once(count).chain(rest.iter().copied()).collect();
            pieces.push(Tensor { datatype: self.datatype, shape, data: self.piece(at, bytes)? });
            at += bytes;
        }
        (done == all).then_some(pieces)
    }

    /// The same with the axis made longer: what is new holds `fill`, the bytes of one element.
    pub(crate) fn filled(&self, axis: usize, length: usize, fill: &[u8]) -> Option<Tensor> {
        let own = *self.shape.get(axis)?;
        let missing = length.checked_sub(own)?;
        let inner: usize = self.shape.get(axis + 1..)?.iter().product();
        let width = self.datatype.width().filter(|width| *width == fill.len())?;
        let mut shape = self.shape.clone();
        *shape.get_mut(axis)? = length;
        let mut data = Vec::with_capacity(shape.iter().product::<usize>() * width);
        let end = fill.repeat(missing * inner);
        let outer: usize = self.shape.get(..axis)?.iter().product();
        for at in 0..outer {
            let chunk = own * inner * width;
            data.extend_from_slice(self.data.get(at * chunk..(at + 1) * chunk)?);
            data.extend_from_slice(&end);
        }
        Some(Tensor { datatype: self.datatype, shape, data: data.into() })
    }

    /// The first `length` of an axis.
    pub(crate) fn cut(&self, axis: usize, length: usize) -> Option<Tensor> {
        let own = *self.shape.get(axis)?;
        if own == length {
            return Some(self.clone());
        }
        let inner: usize = self.shape.get(axis + 1..)?.iter().product();
        let width = self.datatype.width().filter(|_| length < own)?;
        let mut shape = self.shape.clone();
        *shape.get_mut(axis)? = length;
        let mut data = Vec::with_capacity(shape.iter().product::<usize>() * width);
        let outer: usize = self.shape.get(..axis)?.iter().product();
        for at in 0..outer {
            let begin = at * own * inner * width;
            data.extend_from_slice(self.data.get(begin..begin + length * inner * width)?);
        }
        Some(Tensor { datatype: self.datatype, shape, data: data.into() })
    }

    fn piece(&self, at: usize, bytes: usize) -> Option<Bytes> {
        (at + bytes <= self.data.len()).then(|| self.data.slice(at..at + bytes))
    }
}

/// Bytes of the first `count` length-prefixed strings.
fn strings_length(data: &[u8], count: usize) -> Option<usize> {
    debug_assert!(DataType::Bytes.width().is_none());
    let mut at = 0usize;
    for _ in 0..count {
        let prefix = data.get(at..at + 4)?.try_into().ok()?;
        at = at.checked_add(4)?.checked_add(u32::from_le_bytes(prefix) as usize)?;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_come_apart_as_they_were_put_together(rows in prop::collection::vec(0..5usize, 1..9), width in 0..4usize) {
            let mut next = 0f32;
            let parts: Vec<Tensor> = rows
                .iter()
                .map(|n| {
                    let values = (0..n * width).map(|_| { next += 1.0; next }).collect();
                    Tensor::from_vec([*n, width], values).expect("rows")
                })
                .collect();
            let whole = Tensor::stack(&parts.iter().collect::<Vec<_>>()).expect("one shape");
            prop_assert_eq!(whole.shape(), [rows.iter().sum(), width]);
            prop_assert_eq!(whole.split(rows.iter().copied()), Some(parts));
            prop_assert_eq!(whole.split(rows.iter().map(|n| n + 1)), None);
        }

        #[test]
        fn strings_come_apart_too(rows in prop::collection::vec(prop::collection::vec(".{0,9}", 2), 1..6)) {
            let parts: Vec<Tensor> = rows.iter().map(|r| Tensor::from_strings([1, 2], r).expect("a row")).collect();
            let whole = Tensor::stack(&parts.iter().collect::<Vec<_>>()).expect("one shape");
            prop_assert_eq!(whole.strings().count(), 2 * rows.len());
            prop_assert_eq!(whole.split(rows.iter().map(|_| 1)), Some(parts));
        }
    }

    #[test]
    fn what_differs_is_not_put_together() {
        let floats = |shape: [usize; 2]| Tensor::from_vec(shape, vec![0f32; shape[0] * shape[1]]).expect("rows");
        let integers = Tensor::from_vec([1, 2], vec![0i32; 2]).expect("rows");
        let scalar = Tensor::from_vec([], vec![0f32]).expect("a scalar");
        assert_eq!(Tensor::stack(&[]), None);
        assert_eq!(Tensor::stack(&[&floats([1, 2]), &floats([1, 3])]), None);
        assert_eq!(Tensor::stack(&[&floats([1, 2]), &integers]), None);
        assert_eq!(Tensor::stack(&[&scalar]), None);
        assert_eq!(scalar.split([1].into_iter()), None);
        assert_eq!(floats([3, 2]).split([1, 1].into_iter()), None);
    }

    #[test]
    fn rows_share_the_memory_of_the_whole() {
        let whole = Tensor::from_vec([3, 2], vec![1i64, 2, 3, 4, 5, 6]).expect("rows");
        let pieces = whole.split([1, 2].into_iter()).expect("three rows");
        assert_eq!(pieces[1].data().as_ptr(), whole.data().slice(16..).as_ptr());
    }
}
