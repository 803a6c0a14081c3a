//! Tokens as sums of means: what a language model's tokens are before anything but linear maps,
//! attention and one elementwise function was done to them.
//!
//! A token is `x = c + Σ_k x_k + z` with `‖z‖ ≤ rest`. A *mean of points* x_k is a mean of the rows
//! of a table; a head of attention makes means of its values, so that it makes one of each. A term
//! *behind a function* is `A φ(y)` with such a y, or a mean of such vectors. An element of x is at
//! most the sum of the largest elements of its terms.
//!
//! Behind a function with `φ(t) = l t + e(t)`, `e(t) = h|t|` (|t|, ReLU) or `|e(t)| ≤ h|t|`, a row a
//! of A gives `a·φ(y) ≤ Σ_j l_j y_j + Σ_j b_j |y_j|` with `l_j = l a_j` and `b_j = h a_j` or `h |a_j|`,
//! and with `|y_j| ≤ m_j` and any `λ_j > 0`
//!
//! ```text
//! b|y| ≤ b (λ + y²/λ)/2 for b > 0,  b|y| ≤ b y²/m for b < 0,
//! ```
//!
//! which makes a quadratic form `const + l·y + Σ_j d_j y_j²` of a sum of means: at most the sum over
//! terms of the largest, over the term's points, of what it adds with the worst of the others.

use std::ops::Range;
use std::sync::Arc;

use lipschitz_nn::graph::Function;
use lipschitz_nn::linalg::{Strided, matmul};
use rayon::prelude::*;

use super::set::tiny;
use crate::bound::pointwise;
use crate::spectral::{Matrix, gamma, max_row_norm, vector_norm};
use crate::upper::{Upper, abs};

/// The most numbers in the tables of a token.
const ROOM: usize = 1 << 20;

/// The most numbers that are held at once for one map.
const HELD: usize = 1 << 24;

/// The most multiplications for one map: for its image, and for its quadratic forms.
const WORK: usize = 1 << 33;

/// Products of factors below this may underflow.
const SMALL: f64 = 1e-280;

/// See the module.
#[derive(Clone)]
pub(super) struct Hull {
    /// c
    centre: Vec<f64>,
    terms: Vec<Term>,
    /// Bound on ‖z‖.
    pub(super) rest: Upper,
}

#[derive(Clone)]
enum Term {
    /// A mean of these rows.
    Points(Arc<Matrix>),
    /// A φ(y); without a map, φ(y).
    Behind(Option<Arc<Matrix>>, Arc<Inner>),
}

/// φ(y) for a y that is a sum of means and a rest.
struct Inner {
    /// The points of all sums, as rows; the centre is a sum of one point.
    points: Matrix,
    sums: Vec<Range<usize>>,
    /// Bounds on the absolute values of the elements of the sum.
    most: Vec<f64>,
    /// About how large the elements are.
    usual: Vec<f64>,
    /// Bounds on the elements of what else is added, and on its ℓ2 norm.
    added: Vec<f64>,
    rest: f64,
    /// l and h, and whether e is h|t|.
    slope: f64,
    bend: f64,
    exact: bool,
    /// Bound on ‖φ(y)‖.
    size: Upper,
}

/// One row of a map behind a function.
struct Row {
    /// l_j and b_j.
    l: Vec<f64>,
    b: Vec<f64>,
    /// `Σ (|l_j| + |b_j|) m_j`, and the same of what is added to y.
    size: f64,
    added: f64,
}

/// The larger; NaN if one of them is, so that nothing is proven by it.
fn larger(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

/// A bound that is no number is none.
fn above(x: f64) -> Upper {
    if x.is_nan() { Upper::INFINITY } else { Upper::from_f64(x.max(0.0)) }
}

impl Hull {
    /// One of these rows, or a mean of them; None if they are too many.
    pub(super) fn points(table: Matrix) -> Option<Self> {
        (table.rows > 0 && table.data.len() <= ROOM).then(|| Self {
            centre: vec![0.0; table.columns],
            terms: vec![Term::Points(Arc::new(table))],
            rest: Upper::ZERO,
        })
    }

    /// A ball.
    pub(super) fn ball(centre: Vec<f64>, rest: Upper) -> Self {
        Self { centre, terms: Vec::new(), rest }
    }

    /// With more of a rest.
    pub(super) fn more(self, rest: Upper) -> Self {
        Self { rest: self.rest + rest, ..self }
    }

    /// With 0 as one of the points of each sum, so that 0 is one of the tokens; None if that is not
    /// enough.
    pub(super) fn or_zero(&self) -> Option<Self> {
        let points = |term: &Term| match term {
            Term::Points(p) => {
                let mut p = (**p).clone();
                p.data.extend(vec![0.0; p.columns]);
                p.rows += 1;
                Some(Term::Points(Arc::new(p)))
            }
            Term::Behind(..) => None,
        };
        let terms = self.terms.iter().map(points).collect::<Option<Vec<_>>>()?;
        self.centre.iter().all(|c| *c == 0.0).then(|| Self { terms, ..self.clone() })
    }

    fn width(&self) -> usize {
        self.centre.len()
    }

    /// `W x + b` for all but the rest, whose part is only what rounding took.
    pub(super) fn image(&self, w: &Matrix, bias: Option<&[f64]>) -> Option<Self> {
        let rows = |term: &Term| match term {
            Term::Points(p) => p.rows,
            Term::Behind(_, inner) => inner.points.columns,
        };
        let rows: usize = self.terms.iter().map(rows).sum();
        let room = rows.checked_mul(w.rows).filter(|n| *n <= ROOM)?;
        room.checked_mul(w.columns).filter(|n| *n <= WORK)?;
        let (size, g) = (vector_norm(&w.data), gamma(w.columns + 4));
        let lost = tiny(room + w.rows);
        let mut rest = lost;
        let product = |a: &Matrix, b: Strided<f64>| {
            let mut data = vec![0.0; a.rows * b.columns];
            let a = Strided::dense(&a.data, a.columns.max(1));
            matmul(&mut data, b.columns, a, b, false, 1.0, true);
            Arc::new(Matrix { rows: a.rows, columns: b.columns, data })
        };
        let mut terms = Vec::with_capacity(self.terms.len());
        for term in &self.terms {
            terms.push(match term {
                Term::Points(p) => {
                    rest = rest + g * max_row_norm(p) * size;
                    Term::Points(product(p, Strided::dense(&w.data, w.columns.max(1)).t()))
                }
                Term::Behind(None, inner) => Term::Behind(Some(Arc::new(w.clone())), inner.clone()),
                Term::Behind(Some(a), inner) => {
                    rest = rest + (g * vector_norm(&a.data) * size + lost) * inner.size;
                    let a = product(w, Strided::dense(&a.data, a.columns.max(1)));
                    Term::Behind(Some(a), inner.clone())
                }
            });
        }
        let mut centre = bias.map_or_else(|| vec![0.0; w.rows], <[f64]>::to_vec);
        let length = vector_norm(&self.centre);
        rest = rest + gamma(w.columns + 6) * (length * size + vector_norm(&centre));
        for (c, row) in centre.iter_mut().zip(w.data.chunks(w.columns.max(1))) {
            *c += row.iter().zip(&self.centre).map(|(w, c)| w * c).sum::<f64>();
        }
        Some(Self { centre, terms, rest })
    }

    /// Of an image, part `index` of `count` of its elements.
    pub(super) fn part(&self, index: usize, count: usize) -> Option<Self> {
        let n = self.width() / count.max(1);
        let term = |term: &Term| match term {
            Term::Points(p) => Some(Term::Points(Arc::new(p.column_block(index, count)))),
            Term::Behind(a, inner) => {
                let a = a.as_ref()?.row_block(index, count);
                Some(Term::Behind(Some(Arc::new(a)), inner.clone()))
            }
        };
        Some(Self {
            centre: self.centre[index * n..(index + 1) * n].to_vec(),
            terms: self.terms.iter().map(term).collect::<Option<_>>()?,
            rest: self.rest,
        })
    }

    /// `a x + b y`
    pub(super) fn plus(&self, a: f64, other: &Self, b: f64) -> Option<Self> {
        let eps = Upper::from_f64(f64::EPSILON);
        let mut rest = abs(a) * self.rest + abs(b) * other.rest;
        let mut terms = Vec::new();
        for (factor, hull) in [(a, self), (b, other)] {
            for term in hull.terms.iter().filter(|_| factor != 0.0) {
                let times = |m: &Arc<Matrix>| {
                    if factor == 1.0 {
                        return m.clone();
                    }
                    let data = m.data.iter().map(|x| factor * x).collect();
                    Arc::new(Matrix { data, ..**m })
                };
                // Each number is rounded once.
                let lost = |m: &Matrix, size| abs(factor) * eps * size + tiny(m.data.len());
                terms.push(match term {
                    Term::Points(p) => {
                        rest = rest + lost(p, max_row_norm(p));
                        Term::Points(times(p))
                    }
                    Term::Behind(m, inner) => {
                        let m = m.as_ref()?;
                        rest = rest + lost(m, vector_norm(&m.data)) * inner.size;
                        Term::Behind(Some(times(m)), inner.clone())
                    }
                });
            }
        }
        let pairs = || self.centre.iter().zip(&other.centre);
        let centre = pairs().map(|(x, y)| a * x + b * y).collect();
        let size: Vec<f64> = pairs().map(|(x, y)| (a * x).abs() + (b * y).abs()).collect();
        rest = rest + gamma(4) * vector_norm(&size) + tiny(size.len());
        let numbers = |term: &Term| match term {
            Term::Points(m) | Term::Behind(Some(m), _) => m.data.len(),
            Term::Behind(None, _) => 0,
        };
        let room: usize = terms.iter().map(numbers).sum();
        (room <= ROOM).then_some(Self { centre, terms, rest })
    }

    /// `scale · φ(x)` of length at most `size`; None for a function that is not 0 at 0.
    pub(super) fn behind(&self, function: Function, scale: f64, size: Upper) -> Option<Self> {
        let (slope, bend, exact) = match function {
            Function::Identity => (1.0, 0.0, true),
            Function::Abs => (0.0, 1.0, true),
            Function::Relu => (0.5, 0.5, true),
            Function::LeakyRelu { slope } => (0.5 * (1.0 + slope), 0.5 * (1.0 - slope), true),
            _ => match pointwise::secants(function) {
                ((slope, bend), 0.0) => (slope, bend.to_f64(), false),
                _ => return None,
            },
        };
        let (slope, bend) = (scale * slope, scale * bend);
        // What underflows here would be multiplied by the size of x.
        if scale != 0.0 && (slope + bend).abs() < SMALL {
            return None;
        }
        let inner = Inner::new(self, (slope, bend, exact), size)?;
        let (centre, terms) = (vec![0.0; self.width()], vec![Term::Behind(None, Arc::new(inner))]);
        Some(Self { centre, terms, rest: Upper::ZERO })
    }

    /// Bound on |x·y| for a token x of this and y of another: the sum over pairs of sums of means of the
    /// largest product of two of their points. None if something is behind a function.
    pub(super) fn product(&self, other: &Self) -> Option<Upper> {
        let (x, y) = (self.stacked()?, other.stacked()?);
        let n = self.width();
        let work = x.0.rows.checked_mul(y.0.rows).filter(|work| *work <= HELD)?;
        work.checked_mul(n).filter(|work| *work <= WORK)?;
        let mut products = vec![0.0; work];
        let (a, b) = (Strided::dense(&x.0.data, n.max(1)), Strided::dense(&y.0.data, n.max(1)));
        matmul(&mut products, y.0.rows, a, b.t(), false, 1.0, true);
        let (mut ends, mut size) = ([0.0; 2], Upper::ZERO);
        for (own, length) in x.1.iter().zip(&x.2) {
            for (others, other) in y.1.iter().zip(&y.2) {
                let rows = || products.chunks(y.0.rows).skip(own.start).take(own.len());
                let all = || rows().flat_map(|row| row[others.clone()].iter().copied());
                ends[0] += all().fold(f64::NEG_INFINITY, larger);
                ends[1] += all().map(|x| -x).fold(f64::NEG_INFINITY, larger);
                size = size + *length * *other;
            }
        }
        let length = |all: &[Upper]| all.iter().fold(Upper::ZERO, |sum, x| sum + *x);
        let (long, wide) = (length(&x.2), length(&y.2));
        let rest = long * other.rest + wide * self.rest + self.rest * other.rest;
        // Every product is at most the product of two lengths, and so is what rounding takes from sums.
        let lost = gamma(n + x.1.len() * y.1.len() + 4) * size + tiny(n + work);
        Some(above(larger(ends[0], ends[1])) + lost + rest)
    }

    /// All points as rows, which are those of each sum, and the longest of each; the centre is a sum
    /// of one point.
    fn stacked(&self) -> Option<(Matrix, Vec<Range<usize>>, Vec<Upper>)> {
        let (mut data, mut sums, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        let n = self.width().max(1);
        let centre = Arc::new(Matrix { rows: 1, columns: n, data: self.centre.clone() });
        for term in self.terms.iter().chain([&Term::Points(centre)]) {
            let Term::Points(points) = term else { return None };
            let from = data.len() / n;
            data.extend_from_slice(&points.data);
            sums.push(from..from + points.rows);
            lengths.push(max_row_norm(points));
        }
        Some((Matrix { rows: data.len() / n, columns: n, data }, sums, lengths))
    }

    /// Bounds on the absolute values of the elements of all but the rest.
    pub(super) fn elements(&self) -> Vec<Upper> {
        let n = self.width();
        let end = |sign: f64| -> Vec<Upper> {
            let terms: Vec<_> = self.terms.iter().map(|term| term.largest(sign, n)).collect();
            let element = |i: usize| {
                let all = || terms.iter().map(|term| term[i]).chain([sign * self.centre[i]]);
                let (sum, size) = (all().sum(), all().map(f64::abs).sum());
                above(sum) + gamma(terms.len() + 2) * abs(size)
            };
            (0..n).map(element).collect()
        };
        end(1.0).into_iter().zip(end(-1.0)).map(|(up, down)| up.max(down)).collect()
    }
}

impl Term {
    /// The largest that each of n elements can be, or its negative.
    fn largest(&self, sign: f64, n: usize) -> Vec<f64> {
        match self {
            Self::Points(p) => {
                let mut out = vec![f64::NEG_INFINITY; n];
                for row in p.data.chunks(n.max(1)) {
                    out.iter_mut().zip(row).for_each(|(max, x)| *max = larger(*max, sign * x));
                }
                out
            }
            Self::Behind(None, inner) => {
                let most = inner.most.iter().zip(&inner.added).map(|(y, added)| {
                    let y = abs(*y) + abs(*added) + abs(inner.rest);
                    let slope = abs(inner.slope) + abs(inner.bend);
                    (y * slope * (Upper::ONE + gamma(4))).to_f64()
                });
                most.collect()
            }
            Self::Behind(Some(a), inner) => {
                let few = (HELD / inner.points.rows.max(1)).max(1);
                let parts = a.data.chunks((few * a.columns).max(1));
                let of = |part: &[f64]| {
                    let rows = part.len() / a.columns.max(1);
                    let part = Matrix { rows, columns: a.columns, data: part.to_vec() };
                    inner.largest(&part, sign, a.rows)
                };
                parts.flat_map(of).collect()
            }
        }
    }
}

impl Inner {
    fn new(y: &Hull, (slope, bend, exact): (f64, f64, bool), size: Upper) -> Option<Self> {
        let n = y.width();
        let (mut points, mut sums) = (Vec::new(), Vec::new());
        let mut added = vec![Upper::ZERO; n];
        let (mut most, mut usual) = (vec![Upper::ZERO; n], vec![0.0; n]);
        let one = Term::Points(Arc::new(Matrix { rows: 1, columns: n, data: y.centre.clone() }));
        for term in y.terms.iter().chain([&one]) {
            let both = [1.0, -1.0].map(|sign| term.largest(sign, n));
            let size = |i: usize| above(larger(both[0][i], both[1][i]));
            match term {
                Term::Points(p) => {
                    let from = points.len() / n.max(1);
                    points.extend_from_slice(&p.data);
                    sums.push(from..from + p.rows);
                    for i in 0..n {
                        most[i] = most[i] + size(i);
                        usual[i] += p.data.iter().skip(i).step_by(n).map(|x| x * x).sum::<f64>()
                            / p.rows as f64;
                    }
                }
                Term::Behind(..) => {
                    added.iter_mut().enumerate().for_each(|(i, a)| *a = *a + size(i));
                }
            }
        }
        let floor = 1e-3 * (usual.iter().sum::<f64>() / n.max(1) as f64).sqrt();
        let usual: Vec<f64> = usual.iter().map(|x| x.sqrt().max(floor)).collect();
        let finite = |x: &[Upper]| -> Option<Vec<f64>> {
            x.iter().map(|x| Some(x.to_f64()).filter(|x| x.is_finite())).collect()
        };
        let rows = points.len() / n.max(1);
        let (most, added, rest) = (finite(&most)?, finite(&added)?, y.rest.to_f64());
        if !rest.is_finite() || !usual.iter().all(|x| *x > 0.0 && x.is_finite()) {
            return None;
        }
        let points = Matrix { rows, columns: n, data: points };
        Some(Self { points, sums, most, usual, added, rest, slope, bend, exact, size })
    }

    /// The largest `sign · a·φ(y)` that can be, for each row a, some of `all` rows.
    fn largest(&self, a: &Matrix, sign: f64, all: usize) -> Vec<f64> {
        let (n, points) = (a.columns, self.points.rows);
        let rows: Vec<Row> = a.data.chunks(n.max(1)).map(|a| self.row(a, sign)).collect();
        // Σ l_j y_j + b_j⁺|y_j| of each row and point.
        let mut sums = vec![0.0; a.rows * points];
        let sizes = self.points.data.iter().map(|y| y.abs()).collect();
        let sizes = Matrix { data: sizes, ..self.points };
        let parts: [(Vec<f64>, &Matrix); 2] = [
            (rows.iter().flat_map(|row| row.l.iter().copied()).collect(), &self.points),
            (rows.iter().flat_map(|row| row.b.iter().map(|b| b.max(0.0))).collect(), &sizes),
        ];
        for (left, right) in parts {
            let (left, right) = (Strided::dense(&left, n), Strided::dense(&right.data, n));
            matmul(&mut sums, points, left, right.t(), true, 1.0, true);
        }
        let work = points.saturating_mul(points).saturating_mul(4 * n);
        let few = work.saturating_mul(all) <= WORK;
        let bound = |(row, sums): (&Row, &[f64])| {
            let most = |sum: &Range<usize>| {
                sums[sum.clone()].iter().copied().fold(f64::NEG_INFINITY, larger)
            };
            let simple = self.sums.iter().map(most).sum::<f64>() + self.room(row, row.size);
            let simple = simple.next_up();
            match few.then(|| self.by_form(row)).flatten() {
                Some(form) if form < simple => form,
                _ => simple,
            }
        };
        rows.par_iter().zip(sums.par_chunks(points.max(1))).map(bound).collect()
    }

    fn row(&self, a: &[f64], sign: f64) -> Row {
        let l: Vec<f64> = a.iter().map(|a| sign * a * self.slope).collect();
        let b = a.iter().map(|a| sign * a * self.bend);
        let b: Vec<f64> = b.map(|b| if self.exact { b } else { b.abs() }).collect();
        let weight = |j: usize| l[j].abs() + b[j].abs();
        let added = (0..a.len()).map(|j| weight(j) * (self.added[j] + self.rest)).sum();
        let size = (0..a.len()).map(|j| weight(j) * self.most[j]).sum();
        Row { l, b, size, added }
    }

    /// What is added to y, and what rounding can take from sums of terms of this size.
    fn room(&self, row: &Row, size: f64) -> f64 {
        let n = self.points.columns;
        let sums = gamma(2 * n + 8 * self.sums.len() + 32);
        // What underflows in an element of a row is multiplied by one of y.
        let long = (0..n).map(|j| self.most[j] + self.added[j] + self.rest).sum::<f64>();
        let lost = sums * abs(size) + tiny(2 * n) * (Upper::ONE + abs(long * (1.0 + 1e-6)));
        (lost + abs(row.added) * (Upper::ONE + sums)).to_f64()
    }

    /// The bound by a quadratic form.
    fn by_form(&self, row: &Row) -> Option<f64> {
        let Row { l, b, .. } = row;
        let n = l.len();
        let sum = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>();
        let positive = |j: usize| b[j].max(0.0);
        let constant = sum(&|j| 0.5 * positive(j) * self.usual[j]);
        if !(constant > 0.0 && constant.is_finite()) {
            return None;
        }
        // λ is `usual` times the factor that is best without l and negative b.
        let d: Vec<f64> = (0..n).map(|j| 0.5 * positive(j) / self.usual[j]).collect();
        let small = |x: f64| x != 0.0 && x.abs() < SMALL;
        if (0..n).any(|j| small(b[j]) || positive(j) > 0.0 && d[j] < SMALL) {
            return None;
        }
        let factor = (self.form(&vec![0.0; n], &d) / constant).sqrt();
        let negative = |j: usize| match self.most[j] {
            0.0 => 0.0,
            most => b[j].min(0.0) / most,
        };
        let parts = |j: usize| [d[j] / factor, negative(j)];
        if (0..n).any(|j| d[j] > 0.0 && parts(j)[0] < SMALL || b[j] < 0.0 && small(parts(j)[1])) {
            return None;
        }
        let d: Vec<f64> = (0..n).map(|j| parts(j)[0] + parts(j)[1]).collect();
        let size = row.size
            + factor * constant
            + sum(&|j| d[j].abs() * self.most[j] * self.most[j])
            + sum(&|j| positive(j) * self.most[j]);
        Some((factor * constant + self.form(l, &d) + self.room(row, size)).next_up())
    }

    /// No less than `l·y + Σ_j d_j y_j²`, but for rounding.
    fn form(&self, l: &[f64], d: &[f64]) -> f64 {
        let (rows, n) = (self.points.rows, self.points.columns);
        let mut weighted = self.points.clone();
        weighted.scale_columns(d);
        let mut gram = vec![0.0; rows * rows];
        let (a, b) = (Strided::dense(&weighted.data, n), Strided::dense(&self.points.data, n));
        matmul(&mut gram, rows, a, b.t(), false, 1.0, false);
        // A convex form is largest at a point; otherwise it is one of a pair of means.
        let convex = d.iter().all(|d| *d >= 0.0);
        let one = |sum: &Range<usize>, t: usize| {
            let row = &self.points.data[t * n..(t + 1) * n];
            let linear: f64 = l.iter().zip(row).map(|(l, y)| l * y).sum();
            let gram = &gram[t * rows..(t + 1) * rows];
            self.sums.iter().fold(linear, |total, other| {
                total
                    + match convex && other == sum {
                        true => gram[t],
                        false => {
                            gram[other.clone()].iter().copied().fold(f64::NEG_INFINITY, larger)
                        }
                    }
            })
        };
        let most =
            |sum: &Range<usize>| sum.clone().map(|t| one(sum, t)).fold(f64::NEG_INFINITY, larger);
        self.sums.iter().map(most).sum()
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn table(rng: &mut ChaCha8Rng, rows: usize, columns: usize, size: f64) -> Matrix {
        let data = (0..rows * columns).map(|_| rng.random_range(-size..size)).collect();
        Matrix { rows, columns, data }
    }

    fn add(x: &mut [f64], y: &[f64]) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }

    fn product(w: &Matrix, x: &[f64]) -> Vec<f64> {
        let row = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum();
        w.data.chunks(w.columns).map(row).collect()
    }

    /// A row, or a mean of two.
    fn mean(rng: &mut ChaCha8Rng, m: &Matrix) -> Vec<f64> {
        let mut row = || {
            let i = rng.random_range(0..m.rows);
            m.data[i * m.columns..(i + 1) * m.columns].to_vec()
        };
        let (a, b) = (row(), row());
        let p = if rng.random_bool(0.5) { 1.0 } else { rng.random_range(0.0..1.0) };
        a.iter().zip(b).map(|(a, b)| p * a + (1.0 - p) * b).collect()
    }

    /// Two tables and a rest, behind a function between two maps.
    #[test]
    fn nothing_is_larger_and_little_is_lost() {
        let functions = [
            (Function::Abs, (|t: f64| t.abs()) as fn(f64) -> f64),
            (Function::Relu, |t| t.max(0.0)),
            (Function::LeakyRelu { slope: 0.25 }, |t| t.max(0.25 * t)),
            (Function::LeakyRelu { slope: -0.5 }, |t| t.max(-0.5 * t)),
            (Function::Tanh, f64::tanh),
            (Function::Silu, |t| t / (1.0 + (-t).exp())),
            (Function::Identity, |t| t),
        ];
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for (function, phi) in functions {
            let mut closest = 0.0_f64;
            for case in 0..12 {
                let rest = [0.0, 0.1][case % 2];
                let scale = [1.0, -0.5][case / 2 % 2];
                let tables = [table(&mut rng, 5, 4, 1.0), table(&mut rng, 3, 4, 2.0)];
                let (up, down) = (table(&mut rng, 8, 4, 1.0), table(&mut rng, 3, 8, 1.0));
                let [b, c] = [8, 3].map(|n| table(&mut rng, 1, n, 1.0).data);
                let [one, two] = tables.clone().map(|t| Hull::points(t).unwrap());
                let x = one.plus(1.0, &two, -0.5).unwrap().more(abs(rest));
                let norm = vector_norm(&up.data);
                let y = x.image(&up, Some(&b)).unwrap().more(norm * x.rest);
                let hidden = y.behind(function, scale, Upper::from_f64(1e3)).unwrap();
                let out = hidden.image(&down, Some(&c)).unwrap();
                let bounds: Vec<f64> =
                    out.elements().iter().map(|x| (*x + out.rest).to_f64()).collect();
                for _ in 0..4000 {
                    let mut x = mean(&mut rng, &tables[0]);
                    let other = mean(&mut rng, &tables[1]);
                    add(&mut x, &other.iter().map(|x| -0.5 * x).collect::<Vec<_>>());
                    let z: Vec<f64> = (0..4).map(|_| rng.random_range(-1.0..1.0)).collect();
                    let length = vector_norm(&z).to_f64();
                    add(&mut x, &z.iter().map(|z| rest * z / length).collect::<Vec<_>>());
                    let mut hidden = product(&up, &x);
                    add(&mut hidden, &b);
                    hidden.iter_mut().for_each(|t| *t = scale * phi(*t));
                    let mut y = product(&down, &hidden);
                    add(&mut y, &c);
                    for (y, bound) in y.iter().zip(&bounds) {
                        assert!(y.abs() <= *bound, "{function:?} {case}: {y} above {bound}");
                        closest = closest.max(y.abs() / bound);
                    }
                }
            }
            assert!(closest > 0.6, "{function:?}: {closest}");
        }
    }

    #[test]
    fn what_is_no_number_bounds_nothing() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let mut points = table(&mut rng, 3, 2, 1.0);
        points.data[1] = 1e200;
        let mut map = table(&mut rng, 4, 2, 1.0);
        map.data[1] = 1e200;
        let y = Hull::points(points).unwrap().image(&map, None).unwrap();
        assert!(!(y.elements()[0] + y.rest).is_finite());
        assert!(y.behind(Function::Abs, 1.0, Upper::ONE).is_none());
        assert!(y.behind(Function::Sigmoid, 1.0, Upper::ONE).is_none());
    }

    #[test]
    fn zero_joins_means_alone() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let x = Hull::points(Matrix { rows: 1, columns: 2, data: vec![1.0, 2.0] }).unwrap();
        let first = x.part(0, 2).unwrap().elements()[0].to_f64();
        assert!((1.0..1.0 + 1e-14).contains(&first));
        let term = |hull: &Hull| hull.terms[0].largest(-1.0, 2);
        assert_eq!(term(&x), [-1.0, -2.0]);
        assert_eq!(term(&x.or_zero().unwrap()), [0.0, 0.0]);
        let w = table(&mut rng, 2, 2, 1.0);
        assert!(x.image(&w, Some(&[1.0, 1.0])).unwrap().or_zero().is_none());
        assert!(x.behind(Function::Abs, 1.0, Upper::ONE).unwrap().or_zero().is_none());
    }
}
