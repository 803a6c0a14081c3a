//! Numbers that the file holds or that follow from them: shapes, indices, masks.
//!
//! All are kept as f64, in which whole numbers up to 2⁵³ are exact; the few beyond mean "to the end". What is
//! computed of floats is rounded to their type, as whoever runs the file does: a constant is what it is
//! there, however large the numbers were that it is the difference of.

use std::rc::Rc;

use candle_core::DType;
use half::{bf16, f16};

use super::view::{Base, View, product};

/// What kind of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of this type.
    Float(DType),
    Int,
    Bool,
}

impl Kind {
    /// What is not rounded: numbers that no operator of the file makes.
    pub(super) const REAL: Self = Self::Float(DType::F64);

    pub(super) fn is_float(self) -> bool {
        matches!(self, Self::Float(_))
    }

    /// The kind of what is computed of both.
    pub(super) fn with(self, other: Self) -> Self {
        match (self, other) {
            (Self::Float(a), Self::Float(b)) if a.size_in_bytes() < b.size_in_bytes() => other,
            (Self::Float(_), _) => self,
            (_, Self::Float(_)) => other,
            _ => self,
        }
    }

    /// The nearest number of this kind.
    fn nearest(self, x: f64) -> f64 {
        match self {
            Self::Float(DType::F32) => f64::from(x as f32),
            Self::Float(DType::F16) => f16::from_f64(x).to_f64(),
            Self::Float(DType::BF16) => bf16::from_f64(x).to_f64(),
            _ => x,
        }
    }
}

/// An array in memory.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    pub shape: Vec<usize>,
    pub kind: Kind,
    pub data: Rc<Vec<f64>>,
}

/// The largest array that is computed, in elements: a mask of 2048 tokens.
pub(super) const LARGEST: usize = 1 << 22;

impl Array {
    /// None if it is too large, or the shape is not that of the data.
    pub(super) fn new(shape: Vec<usize>, kind: Kind, data: Vec<f64>) -> Option<Self> {
        let fits = product(&shape) == data.len() && data.len() <= LARGEST;
        fits.then(|| Self::of(shape, kind, data.into_iter()))
    }

    fn of(shape: Vec<usize>, kind: Kind, data: impl Iterator<Item = f64>) -> Self {
        Self { shape, kind, data: Rc::new(data.map(|x| kind.nearest(x)).collect()) }
    }

    pub(super) fn ints(data: &[usize]) -> Self {
        let numbers = data.iter().map(|n| *n as f64).collect();
        Self { shape: vec![data.len()], kind: Kind::Int, data: Rc::new(numbers) }
    }

    pub(super) fn scalar(kind: Kind, x: f64) -> Self {
        Self::of(Vec::new(), kind, std::iter::once(x))
    }

    /// Its number, where it has one.
    pub(super) fn one(&self) -> Option<f64> {
        match self.data.as_slice() {
            [x] => Some(*x),
            _ => None,
        }
    }

    /// Whole numbers.
    pub(super) fn whole(&self) -> Option<Vec<i64>> {
        (self.kind == Kind::Int).then(|| self.data.iter().map(|x| *x as i64).collect())
    }

    fn view(&self) -> View {
        View::whole(Base::Weight(0), &self.shape)
    }

    /// The elements that a view of this array leads to.
    pub(super) fn gather(&self, view: &View) -> Option<Self> {
        if view.count() > LARGEST {
            return None;
        }
        let data = view.places().into_iter().map(|at| self.data.get(at).copied());
        Self::new(view.shape(), self.kind, data.collect::<Option<Vec<f64>>>()?)
    }

    /// What a move of elements makes of it.
    pub(super) fn moved(&self, by: impl FnOnce(View) -> Option<View>) -> Option<Self> {
        self.gather(&by(self.view())?)
    }

    /// Repeated as numpy broadcasts.
    pub(super) fn expand(&self, shape: &[usize]) -> Option<Self> {
        self.moved(|view| view.expand(shape))
    }

    /// An operator on each element.
    pub(super) fn map(&self, kind: Kind, f: impl Fn(f64) -> f64) -> Self {
        Self::of(self.shape.clone(), kind, self.data.iter().map(|x| f(*x)))
    }

    /// An operator on the elements of two, as numpy broadcasts.
    pub(super) fn zip(
        &self,
        other: &Self,
        kind: Kind,
        f: impl Fn(f64, f64) -> f64,
    ) -> Option<Self> {
        let shape = broadcast(&self.shape, &other.shape)?;
        let (a, b) = (self.expand(&shape)?, other.expand(&shape)?);
        let data = a.data.iter().zip(b.data.iter()).map(|(a, b)| f(*a, *b)).collect();
        Self::new(shape, kind, data)
    }

    /// The elements of one axis that these are, each a place.
    pub(super) fn select(&self, axis: usize, places: &[usize]) -> Option<Self> {
        let size = *self.shape.get(axis)?;
        let inner = product(self.shape.get(axis + 1..)?);
        let outer = product(self.shape.get(..axis)?);
        let mut shape = self.shape.clone();
        *shape.get_mut(axis)? = places.len();
        if product(&shape) > LARGEST || places.iter().any(|p| *p >= size) {
            return None;
        }
        let mut data = Vec::with_capacity(product(&shape));
        for o in 0..outer {
            for place in places {
                let from = (o * size + place) * inner;
                data.extend_from_slice(self.data.get(from..from + inner)?);
            }
        }
        Self::new(shape, self.kind, data)
    }

    /// For each index, the element there along an axis, in the same place otherwise.
    pub(super) fn pick(&self, index: &Self, along: i64) -> Option<Self> {
        let along = axis(along, self.shape.len())?;
        let fits = index.shape.len() == self.shape.len()
            && (0..self.shape.len()).all(|i| i == along || index.shape[i] <= self.shape[i]);
        if !fits {
            return None;
        }
        let (strides, of) = (strides(&self.shape), strides(&index.shape));
        let size = self.shape[along] as i64;
        let element = |(at, i): (usize, i64)| {
            let i = if i < 0 { i + size } else { i };
            let i = usize::try_from(i).ok().filter(|i| (*i as i64) < size)?;
            let place = (0..self.shape.len()).map(|d| {
                let own = at / of[d] % index.shape[d].max(1);
                strides[d] * if d == along { i } else { own }
            });
            self.data.get(place.sum::<usize>()).copied()
        };
        let data = index.whole()?.into_iter().enumerate().map(element).collect::<Option<_>>()?;
        Self::new(index.shape.clone(), self.kind, data)
    }

    /// For each row of indices, what is there.
    pub(super) fn look_up(&self, index: &Self) -> Option<Self> {
        let (depth, outer) = index.shape.split_last()?;
        let (front, inner) = self.shape.split_at_checked(*depth)?;
        let (count, strides) = (product(inner), strides(&self.shape));
        let shape = [outer, inner].concat();
        if *depth == 0 || product(&shape) > LARGEST {
            return None;
        }
        let mut data = Vec::new();
        for row in index.whole()?.chunks(*depth) {
            let mut at = 0;
            for ((i, size), stride) in row.iter().zip(front).zip(&strides) {
                let i = if *i < 0 { i + *size as i64 } else { *i };
                at += usize::try_from(i).ok().filter(|i| i < size)? * stride;
            }
            data.extend_from_slice(self.data.get(at..at + count)?);
        }
        Self::new(shape, self.kind, data)
    }

    /// Side by side along an axis.
    pub(super) fn concat(parts: &[Self], axis: usize) -> Option<Self> {
        let first = parts.first()?;
        let outer = product(first.shape.get(..axis)?);
        let mut shape = first.shape.clone();
        let mut total = 0usize;
        for part in parts {
            let mut other = part.shape.clone();
            total = total.checked_add(*other.get(axis)?)?;
            *other.get_mut(axis)? = *shape.get(axis)?;
            if other != shape || part.kind != first.kind {
                return None;
            }
        }
        *shape.get_mut(axis)? = total;
        if product(&shape) > LARGEST {
            return None;
        }
        let mut data = Vec::new();
        for o in 0..outer {
            for part in parts {
                let inner = product(part.shape.get(axis..)?);
                data.extend_from_slice(part.data.get(o * inner..(o + 1) * inner)?);
            }
        }
        Self::new(shape, first.kind, data)
    }
}

/// How far neighbours of each axis are apart.
fn strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|i| product(&shape[i + 1..]).max(1)).collect()
}

/// The shape of two together.
pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    // An axis that one of them lacks is of size 1 there: that is what broadcasting means.
    let at = |shape: &[usize], i: usize| {
        (i + shape.len()).checked_sub(rank).and_then(|i| shape.get(i)).copied().unwrap_or(1)
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (1, n) | (n, 1) => Some(n),
            (m, n) if m == n => Some(n),
            _ => None,
        })
        .collect()
}

/// Where an axis counts from the end.
pub(super) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let at = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(at).ok().filter(|at| *at < rank.max(1))
}

/// Where an end of a slice of step 1 lies, as the operator defines it.
pub(super) fn bound(end: i64, size: usize) -> usize {
    let end = if end < 0 { end.saturating_add(size as i64) } else { end };
    usize::try_from(end).unwrap_or(0).min(size)
}

/// The places of a slice, as the operator defines it; none of step 0, or if there are too many.
pub(super) fn places(from: i64, to: i64, step: i64, size: usize) -> Option<Vec<usize>> {
    if size / usize::try_from(step.unsigned_abs()).ok()?.max(1) > LARGEST {
        return None;
    }
    let n = size as i64;
    let bound = |x: i64| if x < 0 { x.saturating_add(n) } else { x };
    let (from, to) = (bound(from), bound(to));
    let mut out = Vec::new();
    if step > 0 {
        let mut at = from.clamp(0, n);
        while at < to.clamp(0, n) {
            out.push(at as usize);
            at = at.saturating_add(step);
        }
    } else if step < 0 {
        let mut at = from.clamp(0.min(n - 1), n - 1);
        while at > to.clamp(-1, n - 1) {
            out.push(at as usize);
            at = at.saturating_add(step);
        }
    } else {
        return None;
    }
    Some(out)
}
