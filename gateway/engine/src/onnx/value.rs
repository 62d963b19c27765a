//! What is known of the values of a graph before it runs: their element types, and how large their elements can be.

use std::collections::HashMap;

use super::element::Element;

/// What a dimension, a count or an index stays below: whatever has more elements does not fit the memory of one call.
const SIZE: f64 = (1u64 << 30) as f64;
/// What a size may be multiplied with and still be taken for a size.
const FACTOR: f64 = 4096.0;

/// How large a value's elements can be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bound {
    /// From the first to the second.
    Within(f64, f64),
    /// As a dimension, a count of elements or an index can be: memory bounds it, and so it fits 32 bits.
    Size,
}

use Bound::{Size, Within};

impl Bound {
    /// Nothing is known.
    pub const ANY: Bound = Within(f64::NEG_INFINITY, f64::INFINITY);

    /// The smallest and the largest.
    pub fn ends(self) -> (f64, f64) {
        match self {
            Within(low, high) => (low, high),
            Size => (-SIZE, SIZE),
        }
    }

    fn largest(self) -> f64 {
        let (low, high) = self.ends();
        low.abs().max(high.abs())
    }

    /// Whether no element leaves 32 bits.
    pub fn fits(self) -> bool {
        let (low, high) = self.ends();
        low >= f64::from(i32::MIN) && high <= f64::from(i32::MAX)
    }

    /// From `low` to `high`; where that is no range, as for infinities that cancel, nothing is known.
    fn from(low: f64, high: f64) -> Bound {
        if low <= high { Within(low, high) } else { Bound::ANY }
    }

    /// Either of two values.
    pub fn or(self, other: Bound) -> Bound {
        let ((a, b), (c, d)) = (self.ends(), other.ends());
        match (self, other) {
            (Within(..), Within(..)) => Within(a.min(c), b.max(d)),
            _ if self.largest().max(other.largest()) <= SIZE => Size,
            _ => Within(a.min(c), b.max(d)),
        }
    }

    pub fn plus(self, other: Bound) -> Bound {
        let ((a, b), (c, d)) = (self.ends(), other.ends());
        match (self, other) {
            (Within(..), Within(..)) => Bound::from(a + c, b + d),
            _ if self.largest().max(other.largest()) <= SIZE => Size,
            _ => Bound::from(a + c, b + d),
        }
    }

    pub fn negated(self) -> Bound {
        match self {
            Within(low, high) => Within(-high, -low),
            Size => Size,
        }
    }

    pub fn times(self, other: Bound) -> Bound {
        let ((a, b), (c, d)) = (self.ends(), other.ends());
        match (self, other) {
            (Size, Size) => return Size,
            (Size, x) | (x, Size) if x.largest() <= FACTOR => return Size,
            _ => {}
        }
        // Zero times whatever an integer can be is zero; a float that is infinite makes it no number.
        let products = [a * c, a * d, b * c, b * d];
        if products.iter().any(|p| p.is_nan()) {
            return Bound::ANY;
        }
        Within(
            products.iter().copied().fold(f64::INFINITY, f64::min),
            products.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        )
    }

    pub fn absolute(self) -> Bound {
        match self {
            Within(low, high) if low <= 0.0 && high >= 0.0 => Within(0.0, self.largest()),
            Within(low, high) => Within(low.abs().min(high.abs()), self.largest()),
            Size => Size,
        }
    }

    /// The sum of as many as there may be.
    pub fn summed(self) -> Bound {
        match self {
            Within(0.0, 0.0) => self,
            Within(..) if self.largest() <= 1.0 => Size,
            _ => Bound::ANY,
        }
    }

    /// The product of as many as there may be. Those of dimensions are a count of elements.
    pub fn multiplied(self) -> Bound {
        match self {
            Size => Size,
            Within(..) if self.largest() <= 1.0 => Within(-1.0, 1.0),
            Within(..) => Bound::ANY,
        }
    }

    /// A quotient; of integers, whose divisor is at least 1 or at most -1, it is no larger than what is divided.
    pub fn over(self, other: Bound, integers: bool) -> Bound {
        let largest = self.largest();
        match (self, other) {
            (Size, Size) => Size,
            (Size, Within(c, d)) if integers || (c > 0.0 || d < 0.0) && c.abs().min(d.abs()) >= 1.0 / FACTOR => Size,
            (_, Within(c, _)) if integers && c >= 1.0 => self.or(Within(0.0, 0.0)),
            _ if integers => Within(-largest, largest),
            (Within(..), Within(c, d)) if c > 0.0 || d < 0.0 => self.times(Bound::from(1.0 / d, 1.0 / c)),
            _ => Bound::ANY,
        }
    }

    /// A remainder, of integers or not.
    pub fn modulo(self, other: Bound, integers: bool) -> Bound {
        let largest = other.largest() - if integers { 1.0 } else { 0.0 };
        let (largest, (low, _)) = (largest.max(0.0), self.ends());
        match other {
            Size => Size,
            Within(c, _) if c >= 0.0 && low >= 0.0 => Within(0.0, largest),
            Within(..) => Within(-largest, largest),
        }
    }

    pub fn power(self, exponent: Bound) -> Bound {
        match exponent {
            Within(e, f) if e == f && e == 2.0 => self.times(self).absolute(),
            Within(e, f) if e == f && e == 1.0 => self,
            Within(e, f) if e == f && e >= 0.0 => Bound::from(-self.largest().powf(e), self.largest().powf(e)),
            _ => Bound::ANY,
        }
    }

    /// The larger of two, of each pair.
    pub fn max(self, other: Bound) -> Bound {
        match (self, other) {
            (Within(a, b), Within(c, d)) => Within(a.max(c), b.max(d)),
            _ => self.or(other),
        }
    }

    /// The smaller of two, of each pair.
    pub fn min(self, other: Bound) -> Bound {
        self.negated().max(other.negated()).negated()
    }

    /// To the next whole number, either way.
    pub fn rounded(self) -> Bound {
        match self {
            Within(low, high) => Within(low.floor(), high.ceil()),
            Size => Size,
        }
    }
}

/// What is known of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Value {
    /// Its element type, where that can be told.
    pub element: Option<Element>,
    pub bound: Bound,
    /// Whether all elements are whole numbers; of floats none is infinite or no number then.
    pub whole: bool,
    /// Whether it is a constant in which neither 0 nor -1 is.
    pub divides: bool,
    /// Whether it is BOOL that was cast from other numbers than 0 and 1: an engine without that type still has those
    /// numbers.
    pub loose: bool,
}

impl Value {
    /// What comes from outside: anything that its type can be, or that an engine of 32 bits takes for it.
    pub fn data(element: Option<Element>) -> Value {
        Value::bounded(element, Bound::ANY)
    }

    /// A value with a bound, within what its type can be.
    pub fn bounded(element: Option<Element>, bound: Bound) -> Value {
        Value { element, bound, whole: false, divides: false, loose: false }.in_its_type()
    }

    /// Sizes, counts and indices.
    pub fn size() -> Value {
        Value::bounded(Some(Element::INT64), Size)
    }

    /// Limits what is known by what the type can be: what left that has wrapped.
    pub fn in_its_type(self) -> Value {
        let Some((low, high)) = self.element.and_then(Element::range) else { return self };
        let (a, b) = self.bound.ends();
        let bound = if a >= low && b <= high { self.bound } else { Within(low, high) };
        Value { bound, whole: true, ..self }
    }

    /// Either of two values.
    pub fn or(self, other: Value) -> Value {
        Value {
            element: self.element.or(other.element),
            bound: self.bound.or(other.bound),
            whole: self.whole && other.whole,
            divides: self.divides && other.divides,
            loose: self.loose || other.loose,
        }
    }
}

/// What stands under which name, here and in the graphs around.
#[derive(Debug)]
pub(super) struct Scope<'a, T> {
    known: HashMap<&'a str, T>,
    /// What the names of inner graphs meant before.
    before: Vec<(&'a str, Option<T>)>,
}

impl<T> Default for Scope<'_, T> {
    fn default() -> Self {
        Scope { known: HashMap::new(), before: Vec::new() }
    }
}

impl<'a, T: Copy> Scope<'a, T> {
    pub fn get(&self, name: &str) -> Option<T> {
        self.known.get(name).copied()
    }

    pub fn set(&mut self, name: &'a str, value: T) {
        let before = self.known.insert(name, value);
        self.before.push((name, before));
    }

    /// How many names there are, those that hide others included.
    pub fn len(&self) -> usize {
        self.before.len()
    }

    /// Forgets all names since there were `len`.
    pub fn leave(&mut self, len: usize) {
        for (name, before) in self.before.drain(len..).rev() {
            match before {
                Some(value) => self.known.insert(name, value),
                None => self.known.remove(name),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_told_from_what_may_not() {
        let (flag, byte, int) = (Within(0.0, 1.0), Within(0.0, 255.0), Within(-2147483648.0, 2147483647.0));
        for (bound, fits) in [
            (byte.plus(byte), true),
            (int.plus(flag), false),
            (int.negated(), false),
            (int.absolute(), false),
            (int.times(Within(0.0, 0.0)), true),
            (int.times(flag), true),
            (int.times(Within(-1.0, 1.0)), false),
            (Size.plus(Size), true),
            (Size.plus(int), false),
            (Size.times(Size), true),
            (Size.times(byte), true),
            (Size.times(int), false),
            (flag.summed(), true),
            (byte.summed(), false),
            (Size.summed(), false),
            (Size.multiplied(), true),
            (int.over(Within(2.0, 2.0), true), true),
            (int.over(Within(-1.0, 2.0), true), false),
            (int.over(Within(0.5, 0.5), false), false),
            (Size.over(Within(0.25, 0.25), false), true),
            (Bound::ANY.modulo(byte, false), true),
            (int.modulo(int, true), true),
            (Within(0.0, 100.0).power(Within(2.0, 2.0)), true),
            (Within(0.0, 100.0).power(Within(5.0, 5.0)), false),
            (Bound::ANY.min(byte).max(byte), true),
            (Bound::ANY.times(Within(0.0, 0.0)), false),
            (Bound::ANY.plus(Bound::ANY.negated()), false),
        ] {
            assert_eq!(bound.fits(), fits, "{bound:?}");
        }
    }

    #[test]
    fn names_of_inner_graphs_hide_and_go() {
        let mut scope = Scope::default();
        scope.set("x", 1);
        let len = scope.len();
        scope.set("x", 2);
        scope.set("y", 3);
        scope.set("x", 4);
        assert_eq!((scope.get("x"), scope.get("y")), (Some(4), Some(3)));
        scope.leave(len);
        assert_eq!((scope.get("x"), scope.get("y"), scope.len()), (Some(1), None, 1));
    }
}
