//! Rows to try a graph with, and whether two answers are the same.

use half::{bf16, f16};

use crate::{DataType, Dim, GraphSpec, Tensor, TensorSpec};

/// One row of every input, in declaration order.
pub(super) type Row = Vec<Tensor>;

/// Sizes of dimensions that differ from call to call, in the order in which they are tried.
const FREE: [usize; 4] = [16, 64, 224, 1];
/// Most elements of one made-up row of one input.
const MOST: usize = 4 << 20;

/// The rows as the inputs of one run.
pub(super) fn stacked(rows: &[&Row]) -> Option<Vec<Tensor>> {
    let inputs = rows.first()?.len();
    (0..inputs).map(|at| Tensor::stack(&rows.iter().filter_map(|row| row.get(at)).collect::<Vec<_>>())).collect()
}

/// Bytes of the largest input of these rows.
pub(super) fn bytes(rows: &[&Row]) -> usize {
    let inputs = rows.first().map_or(0, |row| row.len());
    let of = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|tensor| tensor.data().len()).sum();
    (0..inputs).map(of).max().unwrap_or(0)
}

/// Sets of rows to try, the most plausible first: variations of a sample that the graph has answered, and made up of its
/// declaration. Rows that are all the same would show nothing, and are not tried.
pub(super) fn candidates<'a>(
    spec: &'a GraphSpec,
    sample: Option<&'a [Tensor]>,
) -> impl Iterator<Item = Vec<Row>> + Send + 'a {
    let ways = FREE.into_iter().flat_map(|free| [Integers::Small, Integers::Bits, Integers::Zero].map(|i| (free, i)));
    let invented = ways.filter_map(move |(free, integers)| invent(spec, free, integers));
    let varied = sample.into_iter().filter_map(vary);
    varied.chain(invented).filter(|rows| rows.iter().any(|row| Some(row) != rows.first()))
}

/// The integers of made-up inputs: token ids are small numbers, and some tables are smaller still.
#[derive(Clone, Copy)]
enum Integers {
    Small,
    Bits,
    Zero,
}

/// Numbers that look random and are always the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// From 0 to below 1.
    fn unit(&mut self) -> f64 {
        (self.next() % (1 << 24)) as f64 / f64::from(1 << 24)
    }
}

/// Rows differ in magnitude too: what takes one scale for all rows shows itself then.
fn magnitude(row: usize) -> f64 {
    [1.0, 0.1, 3.0, 1.0, 0.01, 0.3][row % 6]
}

fn invent(spec: &GraphSpec, free: usize, integers: Integers) -> Option<Vec<Row>> {
    let mut random = Random(0x5eed);
    (0..super::COMPARED)
        .map(|row| spec.inputs.iter().map(|input| invent_input(input, free, integers, row, &mut random)).collect())
        .collect()
}

fn invent_input(spec: &TensorSpec, free: usize, integers: Integers, row: usize, random: &mut Random) -> Option<Tensor> {
    let past_first = spec.shape.as_ref()?.get(1..)?.iter().map(|dim| match dim {
        Dim::Fixed(size) => usize::try_from(*size).ok(),
        Dim::Symbol(_) => Some(free),
    });
    let shape: Vec<usize> = std::iter::once(Some(1)).chain(past_first).collect::<Option<_>>()?;
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|count| *count <= MOST)?;
    // A mask that hides everything, or types of tokens that are none, would say little.
    let name = spec.name.to_ascii_lowercase();
    let mut number = || match integers {
        _ if name.contains("mask") => 1.0,
        Integers::Zero => 0.0,
        _ if spec.datatype == DataType::Bool => (random.next() % 2) as f64,
        _ if name.contains("type") => 0.0,
        Integers::Small => (random.next() % 100) as f64,
        Integers::Bits => (random.next() % 2) as f64,
    };
    if spec.datatype == DataType::Bytes {
        let words: Vec<String> = (0..count).map(|at| format!("{row} {at}")).collect();
        return Tensor::from_strings(shape, &words).ok();
    }
    if !is_float(spec.datatype) {
        let values: Vec<f64> = (0..count).map(|_| number()).collect();
        return from_numbers(spec.datatype, shape, &values);
    }
    let values: Vec<f64> = (0..count).map(|_| (random.unit() * 2.0 - 1.0) * magnitude(row)).collect();
    from_numbers(spec.datatype, shape, &values)
}

/// Rows like those of a sample: its floating-point numbers stretched, its integers and strings drawn anew.
fn vary(sample: &[Tensor]) -> Option<Vec<Row>> {
    let rows = crate::batch::common_rows(sample)?;
    let pieces: Vec<Vec<Tensor>> =
        sample.iter().map(|tensor| tensor.split(std::iter::repeat_n(1, rows))).collect::<Option<_>>()?;
    let mut random = Random(0x5eed);
    (0..super::COMPARED)
        .map(|row| pieces.iter().map(|own| vary_input(own.get(row % rows)?, row, &mut random)).collect())
        .collect()
}

fn vary_input(tensor: &Tensor, row: usize, random: &mut Random) -> Option<Tensor> {
    let shape = tensor.shape().to_vec();
    if row == 0 {
        return Some(tensor.clone());
    }
    if tensor.datatype() == DataType::Bytes {
        let words: Vec<_> = tensor.strings().collect();
        return Tensor::from_strings(shape, &drawn(&words, words.len(), random)).ok();
    }
    let mut values = numbers(tensor)?;
    if is_float(tensor.datatype()) {
        let same = values.iter().all(|value| Some(value) == values.first());
        for value in &mut values {
            // A test of zeros must not try zeros only.
            *value = if same { *value + random.unit() - 0.5 } else { *value * (0.5 + random.unit()) } * magnitude(row);
        }
        return from_numbers(tensor.datatype(), shape, &values);
    }
    // Only values that are there are sure to be allowed there. Some rows have the lower of them and some the higher: the same
    // ones in another order would have one scale.
    let mut known = values.clone();
    known.sort_by(f64::total_cmp);
    known.dedup();
    let half = known.len().div_ceil(2);
    let known = match row % 3 {
        1 => &known[..half],
        2 => &known[known.len() - half..],
        _ => &known[..],
    };
    // In every other row the ends stay, where texts have marks.
    let inner = match values.len() {
        all @ 3.. if row % 2 == 1 => 1..all - 1,
        all => 0..all,
    };
    let count = inner.len();
    values.splice(inner, drawn(known, count, random));
    from_numbers(tensor.datatype(), shape, &values)
}

/// So many of these, each as likely as any other.
fn drawn<T: Clone>(from: &[T], count: usize, random: &mut Random) -> Vec<T> {
    let mut one = || from.get(random.next() as usize % from.len().max(1)).cloned();
    (0..count).filter_map(|_| one()).collect()
}

fn is_float(datatype: DataType) -> bool {
    matches!(datatype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64)
}

/// A tensor's numbers as doubles; `None` for byte strings.
pub(super) fn numbers(tensor: &Tensor) -> Option<Vec<f64>> {
    macro_rules! as_doubles {
        ($($name:ident: $rust:ty),*) => {
            match tensor.datatype() {
                $( DataType::$name => tensor.values::<$rust>()?.iter().map(|v| *v as f64).collect(), )*
                DataType::Fp16 => tensor.values::<f16>()?.iter().map(|v| v.to_f64()).collect(),
                DataType::Bf16 => tensor.values::<bf16>()?.iter().map(|v| v.to_f64()).collect(),
                DataType::Bool => tensor.data().iter().map(|v| f64::from(*v)).collect(),
                DataType::Bytes => return None,
            }
        };
    }
    Some(as_doubles!(
        Uint8: u8, Uint16: u16, Uint32: u32, Uint64: u64, Int8: i8, Int16: i16, Int32: i32, Int64: i64, Fp32: f32,
        Fp64: f64
    ))
}

fn from_numbers(datatype: DataType, shape: Vec<usize>, values: &[f64]) -> Option<Tensor> {
    macro_rules! of_doubles {
        ($($name:ident: $rust:ty),*) => {
            match datatype {
                $( DataType::$name => Tensor::from_vec(shape, values.iter().map(|v| *v as $rust).collect::<Vec<_>>()), )*
                DataType::Fp16 => Tensor::from_vec(shape, values.iter().map(|v| f16::from_f64(*v)).collect::<Vec<_>>()),
                DataType::Bf16 => Tensor::from_vec(shape, values.iter().map(|v| bf16::from_f64(*v)).collect::<Vec<_>>()),
                DataType::Bool => {
                    let bytes: Vec<u8> = values.iter().map(|v| u8::from(*v != 0.0)).collect();
                    Tensor::new(DataType::Bool, shape, bytes.into())
                }
                DataType::Bytes => return None,
            }
        };
    }
    let made = of_doubles!(
        Uint8: u8, Uint16: u16, Uint32: u32, Uint64: u64, Int8: i8, Int16: i16, Int32: i32, Int64: i64, Fp32: f32,
        Fp64: f64
    );
    made.ok()
}

/// Where two answers of one row differ by more than arithmetic in another order explains; said for a person.
pub(super) fn difference(together: &Tensor, alone: &Tensor, precise: bool) -> Option<String> {
    if together.datatype() != alone.datatype() || together.shape() != alone.shape() {
        return Some(format!("in shape: {:?} together, {:?} alone", together.shape(), alone.shape()));
    }
    let (Some(a), Some(b)) = (numbers(together), numbers(alone)) else {
        return (together.data() != alone.data()).then(|| "in a byte string".into());
    };
    let tolerance = match together.datatype() {
        DataType::Fp16 | DataType::Bf16 => 2e-2,
        DataType::Fp32 | DataType::Fp64 if precise => 1e-4,
        DataType::Fp32 | DataType::Fp64 => 2e-3,
        _ => 0.0,
    };
    let largest = b.iter().filter(|v| v.is_finite()).fold(0.0f64, |most, v| most.max(v.abs()));
    let same = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * largest;
    let at = a.iter().zip(&b).position(|(a, b)| !same(*a, *b))?;
    let (together, alone) = (a.get(at)?, b.get(at)?);
    Some(format!("at element {at}: {together} together, {alone} alone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(name: &str, datatype: DataType, shape: &[&str]) -> TensorSpec {
        let dim = |d: &&str| d.parse().map_or_else(|_| Dim::Symbol((*d).to_owned()), Dim::Fixed);
        TensorSpec { name: name.into(), datatype, shape: Some(shape.iter().map(dim).collect()) }
    }

    #[test]
    fn made_up_inputs_are_plausible() {
        let inputs = vec![
            input("input_ids", DataType::Int64, &["N", "T"]),
            input("attention_mask", DataType::Int64, &["N", "T"]),
            input("token_type_ids", DataType::Int64, &["N", "T"]),
            input("pixels", DataType::Fp32, &["N", "3", "8"]),
            input("words", DataType::Bytes, &["N"]),
        ];
        let spec = GraphSpec { inputs, outputs: vec![] };
        let rows = candidates(&spec, None).next().expect("rows");
        assert_eq!(rows.len(), super::super::COMPARED);
        for row in &rows {
            assert_eq!(row[0].shape(), [1, 16]);
            assert!(numbers(&row[0]).expect("ids").iter().all(|id| (0.0..100.0).contains(id)));
            assert!(numbers(&row[1]).expect("a mask").iter().all(|v| *v == 1.0));
            assert!(numbers(&row[2]).expect("types").iter().all(|v| *v == 0.0));
            assert_eq!(row[3].shape(), [1, 3, 8]);
            assert_eq!(row[4].strings().count(), 1);
        }
        assert_ne!(rows[0], rows[1]);
        let huge = GraphSpec { inputs: vec![input("x", DataType::Fp32, &["N", "4000000000"])], outputs: vec![] };
        assert_eq!(candidates(&huge, None).count(), 0);
    }

    #[test]
    fn a_sample_is_varied_within_its_own_values() {
        let ids = Tensor::from_vec([2, 5], vec![101i64, 7, 8, 9, 102, 101, 3, 4, 5, 102]).expect("ids");
        let scores = Tensor::from_vec([2, 1], vec![1f32, -2.0]).expect("scores");
        let sample = [ids, scores];
        let rows = vary(&sample).expect("rows");
        for (at, row) in rows.iter().enumerate() {
            let own = numbers(&row[0]).expect("ids");
            assert!(at % 2 == 0 && at > 0 || (own[0], own[4]) == (101.0, 102.0));
            let known = if at % 2 == 0 { [7.0, 8.0, 9.0, 101.0, 102.0] } else { [3.0, 4.0, 5.0, 101.0, 102.0] };
            assert!(own.iter().all(|id| known.contains(id)), "{own:?}");
        }
        assert_eq!(rows[0][1].values::<f32>().as_deref(), Some(&[1.0][..]));
        let uneven =
            [Tensor::from_vec([2], vec![0u8; 2]).expect("two"), Tensor::from_vec([1], vec![0u8]).expect("one")];
        assert!(vary(&uneven).is_none());
    }

    #[test]
    fn rows_of_a_short_sample_differ_in_more_than_their_order() {
        let inputs = vec![input("ids", DataType::Int64, &["N", "T"])];
        let spec = GraphSpec { inputs, outputs: vec![] };
        for ids in [&[101i64, 7592, 102][..], &[3, 4], &[101, 9, 8, 7, 102]] {
            let sample = [Tensor::from_vec([1, ids.len()], ids.to_vec()).expect("ids")];
            let rows = candidates(&spec, Some(&sample)).next().expect("rows");
            assert_eq!(rows[0], sample);
            let sum = |row: &Row| numbers(&row[0]).expect("ids").iter().sum::<f64>();
            assert!(rows.iter().any(|row| sum(row) != sum(&rows[0])), "{rows:?}");
        }
    }

    #[test]
    fn rows_that_are_all_the_same_are_not_tried() {
        let one =
            |datatype, name: &str| GraphSpec { inputs: vec![input(name, datatype, &["N", "2"])], outputs: vec![] };
        let (ids, mask) = (one(DataType::Int64, "ids"), one(DataType::Int64, "mask"));
        let same = [Tensor::from_vec([1, 2], vec![7i64; 2]).expect("ids")];
        // Numbers are made up where those of the sample give nothing to choose from.
        assert!(candidates(&ids, Some(&same)).all(|rows| rows[0] != same));
        assert!(candidates(&ids, Some(&same)).count() > 0);
        assert_eq!(candidates(&mask, Some(&same)).count(), 0);
        let word = [Tensor::from_strings([1, 2], &["a", "b"]).expect("words")];
        let rows = candidates(&one(DataType::Bytes, "words"), Some(&word)).next().expect("rows");
        assert_eq!(rows[0], word);
        assert!(candidates(&one(DataType::Bool, "is_set"), None).count() > 0);
    }

    #[test]
    fn a_sample_of_zeros_is_no_row_of_zeros() {
        let rows = vary(&[Tensor::from_vec([1, 3], vec![0f32; 3]).expect("zeros")]).expect("rows");
        assert!(rows[1..].iter().all(|row| numbers(&row[0]).expect("numbers").iter().any(|value| *value != 0.0)));
    }

    #[test]
    fn answers_differ_beyond_rounding_only() {
        let floats = |values: &[f32]| Tensor::from_vec([1, values.len()], values.to_vec()).expect("floats");
        assert_eq!(difference(&floats(&[1.0, 1e-9]), &floats(&[1.00001, 0.0]), true), None);
        assert_eq!(difference(&floats(&[f32::NAN]), &floats(&[f32::NAN]), true), None);
        let off = difference(&floats(&[1.0, 2.0]), &floats(&[1.0, 2.01]), true).expect("a difference");
        assert!(off.starts_with("at element 1: 2 together"), "{off}");
        let integers = |v: i32| Tensor::from_vec([1], vec![v]).expect("an integer");
        assert!(difference(&integers(1), &integers(2), true).is_some());
        let words = |w: &str| Tensor::from_strings([1], &[w]).expect("a word");
        assert!(difference(&words("a"), &words("b"), true).is_some_and(|off| off.contains("string")));
        assert!(difference(&floats(&[1.0]), &floats(&[1.0, 1.0]), true).is_some_and(|off| off.contains("shape")));
    }
}
