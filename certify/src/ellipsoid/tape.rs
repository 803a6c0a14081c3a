//! Values with a record of how they were computed, so that the logarithm of the bound can be
//! differentiated with respect to every multiplier.
//!
//! A value is an [`Approx`] or an [`Upper`]. The derivative of a matrix is with respect to its
//! `data`; that of a scalar is with respect to its logarithm, so neither overflows. A tape that does
//! not record proves: it is the same arithmetic.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;

use lipschitz_nn::linalg::{Strided, matmul};

use super::approx::{Approx, Enclosed, common, cut, inverse_transpose};
use super::multipliers::{Mode, Multipliers};
use super::positions::EXPONENTIAL;
use crate::spectral::{scaled, top_right_singular_vector};
use crate::upper::Upper;

/// A matrix on the tape.
#[derive(Clone)]
pub(super) struct Var {
    id: usize,
    pub(super) value: Rc<Approx>,
}

/// A positive number on the tape, an upper bound.
#[derive(Clone, Copy)]
pub(super) struct Scalar {
    id: usize,
    pub(super) value: Upper,
}

type Back = Box<dyn Fn(&mut Adjoints)>;

/// The record.
pub(super) struct Tape {
    pub(super) multipliers: RefCell<Multipliers>,
    /// None if nothing will be differentiated.
    steps: Option<RefCell<Vec<Back>>>,
    count: std::cell::Cell<usize>,
}

/// Derivatives of what is differentiated.
#[derive(Default)]
struct Adjoints {
    matrices: Vec<Option<Vec<f64>>>,
    scalars: Vec<f64>,
    multipliers: Vec<Vec<f64>>,
}

impl Adjoints {
    /// The derivative of a value, all uses of which are behind us.
    fn take(&mut self, id: usize) -> Option<Vec<f64>> {
        self.matrices[id].take()
    }

    fn add(&mut self, var: &Var, with: impl FnOnce(&mut [f64])) {
        let n = var.value.data.len();
        with(self.matrices[var.id].get_or_insert_with(|| vec![0.0; n]));
    }

    fn add_scaled(&mut self, var: &Var, factor: f64, by: &[f64]) {
        self.add(var, |out| out.iter_mut().zip(by).for_each(|(o, x)| *o += factor * x));
    }
}

/// `2ⁿ` for moderate n, 0 or infinity beyond.
fn power(n: i64) -> f64 {
    2f64.powi(n.clamp(-2000, 2000) as i32)
}

fn product(a: Strided<'_, f64>, b: Strided<'_, f64>, factor: f64, out: &mut [f64]) {
    let columns = b.columns;
    matmul(out, columns, a, b, true, factor, true);
}

impl Tape {
    /// A tape that records, if that is wanted.
    pub(super) fn new(multipliers: Multipliers, record: bool) -> Self {
        let steps = record.then(RefCell::default);
        Self { multipliers: RefCell::new(multipliers), steps, count: std::cell::Cell::new(0) }
    }

    /// Whether values need not be proven.
    fn searching(&self) -> bool {
        self.multipliers.borrow().mode == Mode::Search
    }

    fn recording(&self) -> bool {
        self.steps.is_some()
    }

    pub(super) fn var(&self, value: Approx) -> Var {
        let id = self.count.get();
        self.count.set(id + 1);
        Var { id, value: Rc::new(value) }
    }

    fn scalar(&self, value: Upper) -> Scalar {
        let id = self.count.get();
        self.count.set(id + 1);
        Scalar { id, value }
    }

    fn record(&self, back: impl Fn(&mut Adjoints) + 'static) {
        if let Some(steps) = &self.steps {
            steps.borrow_mut().push(Box::new(back));
        }
    }

    /// The same value on this tape, which depends on nothing.
    pub(super) fn leaf(&self, of: &Var) -> Var {
        let id = self.count.get();
        self.count.set(id + 1);
        Var { id, value: of.value.clone() }
    }

    /// A value that depends on nothing.
    pub(super) fn constant(&self, value: Approx) -> Var {
        self.var(value)
    }

    pub(super) fn constant_scalar(&self, value: Upper) -> Scalar {
        self.scalar(value)
    }

    /// `w x`
    pub(super) fn times(&self, w: &Rc<Approx>, x: &Var) -> Var {
        let y = self.var(w.times(&x.value));
        let shift = power(w.exponent + x.value.exponent - y.value.exponent);
        let (w, x, out) = (w.clone(), x.clone(), y.clone());
        self.record(move |adjoints| {
            let Some(g) = adjoints.take(out.id) else { return };
            let g = Strided::dense(&g, out.value.columns);
            adjoints.add(&x, |to| product(w.view().t(), g, shift, to));
        });
        y
    }

    /// `w diag(d)`
    pub(super) fn times_diagonal(&self, w: &Rc<Approx>, d: &Var) -> Var {
        let y = self.var(w.times_diagonal(&d.value));
        let shift = power(w.exponent + d.value.exponent - y.value.exponent);
        let (w, d, out) = (w.clone(), d.clone(), y.clone());
        self.record(move |adjoints| {
            let Some(g) = adjoints.take(out.id) else { return };
            adjoints.add(&d, |to| {
                for (g, w) in g.chunks(w.columns).zip(w.data.chunks(w.columns)) {
                    for ((to, g), w) in to.iter_mut().zip(g).zip(w) {
                        *to += shift * g * w;
                    }
                }
            });
        });
        y
    }

    /// `diag(d) x`
    pub(super) fn rows_by(&self, d: &Var, x: &Var) -> Var {
        let y = self.var(x.value.diagonal_times(&d.value));
        let shift = power(d.value.exponent + x.value.exponent - y.value.exponent);
        let (d, x, out) = (d.clone(), x.clone(), y.clone());
        self.record(move |adjoints| {
            let Some(g) = adjoints.take(out.id) else { return };
            let n = out.value.columns;
            adjoints.add(&x, |to| {
                for ((to, g), d) in to.chunks_mut(n).zip(g.chunks(n)).zip(&d.value.data) {
                    to.iter_mut().zip(g).for_each(|(to, g)| *to += shift * d * g);
                }
            });
            adjoints.add(&d, |to| {
                for ((to, g), x) in to.iter_mut().zip(g.chunks(n)).zip(x.value.data.chunks(n)) {
                    *to += shift * dot(g, x);
                }
            });
        });
        y
    }

    /// `a x + b y`
    pub(super) fn blend(&self, a: f64, x: &Var, other: Option<(f64, &Var)>) -> Var {
        let out = self.var(x.value.blend(a, other.map(|(b, y)| (b, &*y.value))));
        let (to, x) = (out.clone(), x.clone());
        let other = other.map(|(b, y)| (b, y.clone()));
        self.record(move |adjoints| {
            let Some(g) = adjoints.take(to.id) else { return };
            let shift = |of: &Var| power(of.value.exponent - to.value.exponent);
            adjoints.add_scaled(&x, a * shift(&x), &g);
            if let Some((b, y)) = &other {
                adjoints.add_scaled(y, b * shift(y), &g);
            }
        });
        out
    }

    /// `s x`
    pub(super) fn scale(&self, x: &Var, s: Scalar) -> Var {
        let out = self.var(x.value.scale(s.value));
        let (mantissa, e) = s.value.parts();
        let factor = mantissa * power(x.value.exponent.saturating_add(e) - out.value.exponent);
        let (to, x) = (out.clone(), x.clone());
        self.record(move |adjoints| {
            let Some(g) = adjoints.take(to.id) else { return };
            let along: f64 = g.iter().zip(&to.value.data).map(|(g, y)| g * y).sum();
            adjoints.scalars[s.id] += along;
            adjoints.add_scaled(&x, factor, &g);
        });
        out
    }

    /// Without the mean of each column.
    pub(super) fn centred(&self, x: &Var) -> Var {
        let out = self.var(x.value.centred());
        let (to, x) = (out.clone(), x.clone());
        self.record(move |adjoints| {
            let Some(g) = adjoints.take(to.id) else { return };
            let g = Approx::exact(to.value.rows, to.value.columns, g).centred();
            let shift = power(x.value.exponent - to.value.exponent + g.exponent);
            adjoints.add_scaled(&x, shift, &g.data);
        });
        out
    }

    /// A row as the diagonal of a matrix.
    pub(super) fn spread(&self, d: &Var) -> Var {
        let out = self.var(d.value.spread());
        let (to, d) = (out.clone(), d.clone());
        self.record(move |adjoints| {
            let Some(g) = adjoints.take(to.id) else { return };
            let n = to.value.columns;
            adjoints.add(&d, |out| (0..n).for_each(|i| out[i] += g[i * n + i]));
        });
        out
    }

    /// Matrices side by side.
    pub(super) fn beside(&self, parts: &[Var]) -> Var {
        if let [one] = parts {
            return one.clone();
        }
        let values: Vec<&Approx> = parts.iter().map(|p| &*p.value).collect();
        let out = self.var(Approx::beside(&values));
        let (to, parts) = (out.clone(), parts.to_vec());
        self.record(move |adjoints| {
            let Some(g) = adjoints.take(to.id) else { return };
            let (mut from, columns) = (0, to.value.columns);
            for p in &parts {
                let shift = power(p.value.exponent - to.value.exponent);
                let n = p.value.columns;
                adjoints.add(p, |out| {
                    for (out, g) in out.chunks_mut(n).zip(g.chunks(columns)) {
                        let g = &g[from..from + n];
                        out.iter_mut().zip(g).for_each(|(o, g)| *o += shift * g);
                    }
                });
                from += n;
            }
        });
        out
    }

    /// Rows `from..to`.
    pub(super) fn rows(&self, x: &Var, from: usize, to: usize) -> Var {
        let n = x.value.columns;
        let data = x.value.data[from * n..to * n].to_vec();
        let value = Approx::new(to - from, n, data, x.value.exponent, x.value.error);
        let out = self.var(value);
        let shift = power(x.value.exponent - out.value.exponent);
        let (here, x) = (out.clone(), x.clone());
        self.record(move |adjoints| {
            let Some(g) = adjoints.take(here.id) else { return };
            adjoints.add(&x, |out| {
                out[from * n..to * n].iter_mut().zip(&g).for_each(|(o, g)| *o += shift * g);
            });
        });
        out
    }

    /// The norm.
    pub(super) fn norm(&self, x: &Var) -> Scalar {
        if !self.searching() {
            return self.scalar(x.value.norm());
        }
        let m = x.value.matrix();
        let v = top_right_singular_vector(&m);
        let u = along(x.value.view(), &v);
        let size = length(&u);
        let out = self.scalar(Upper::from_f64(size).times_power(x.value.exponent));
        let x = x.clone();
        self.record(move |adjoints| {
            let g = adjoints.scalars[out.id] / (size * size).max(f64::MIN_POSITIVE);
            adjoints.add(&x, |to| outer(g, &u, &v, to));
        });
        out
    }

    /// The Frobenius norm, an estimate.
    pub(super) fn frobenius(&self, x: &Var) -> Scalar {
        let out = self.scalar(x.value.size.times_power(x.value.exponent));
        let x = x.clone();
        self.record(move |adjoints| {
            let square = dot(&x.value.data, &x.value.data).max(f64::MIN_POSITIVE);
            let g = adjoints.scalars[out.id] / square;
            adjoints.add_scaled(&x, g, &x.value.data);
        });
        out
    }

    /// `‖aᵀ b‖` for `[k, m]` and `[k, n]`.
    pub(super) fn inner_norm(&self, a: &Var, b: &Var) -> Scalar {
        if !self.searching() {
            return self.scalar(a.value.inner_norm(&b.value));
        }
        // A power iteration is near enough for a search.
        let (va, vb) = (a.value.view(), b.value.view());
        let mut v = along(vb.t(), &vec![1.0; b.value.rows]);
        let (mut u, mut size) = (Vec::new(), 0.0);
        for _ in 0..60 {
            let by = length(&v).max(f64::MIN_POSITIVE);
            v.iter_mut().for_each(|x| *x /= by);
            u = along(va.t(), &along(vb, &v));
            size = length(&u);
            u.iter_mut().for_each(|x| *x /= size.max(f64::MIN_POSITIVE));
            v = along(vb.t(), &along(va, &u));
        }
        let by = length(&v).max(f64::MIN_POSITIVE);
        v.iter_mut().for_each(|x| *x /= by);
        let exponent = a.value.exponent + b.value.exponent;
        let out = self.scalar(Upper::from_f64(size).times_power(exponent));
        let (a, b) = (a.clone(), b.clone());
        self.record(move |adjoints| {
            let g = adjoints.scalars[out.id] / size.max(f64::MIN_POSITIVE);
            let (bv, au) = (along(b.value.view(), &v), along(a.value.view(), &u));
            adjoints.add(&a, |to| outer(g, &bv, &u, to));
            adjoints.add(&b, |to| outer(g, &au, &v, to));
        });
        out
    }

    /// Norms of the rows, as a row.
    pub(super) fn row_norms(&self, x: &Var) -> Var {
        let norms = x.value.row_norms();
        let e = x.value.exponent;
        let data = norms.iter().map(|n| n.times_power(-e).to_f64()).collect();
        let out = self.var(Approx::new(1, norms.len(), data, e, Upper::ZERO));
        let shift = power(x.value.exponent - out.value.exponent);
        let (to, x) = (out.clone(), x.clone());
        self.record(move |adjoints| {
            let Some(g) = adjoints.take(to.id) else { return };
            let n = x.value.columns;
            adjoints.add(&x, |out| {
                for ((out, row), g) in out.chunks_mut(n).zip(x.value.data.chunks(n)).zip(&g) {
                    let size = length(row).max(f64::MIN_POSITIVE);
                    out.iter_mut().zip(row).for_each(|(o, x)| *o += shift * g * x / size);
                }
            });
        });
        out
    }

    /// `s · t`
    pub(super) fn multiply(&self, s: Scalar, t: Scalar) -> Scalar {
        let out = self.scalar(s.value * t.value);
        self.record(move |adjoints| {
            let g = adjoints.scalars[out.id];
            adjoints.scalars[s.id] += g;
            adjoints.scalars[t.id] += g;
        });
        out
    }

    /// `s + t`
    pub(super) fn sum(&self, s: Scalar, t: Scalar) -> Scalar {
        let out = self.scalar(s.value + t.value);
        self.record(move |adjoints| {
            let g = adjoints.scalars[out.id];
            let share = ratio(s.value, out.value);
            adjoints.scalars[s.id] += share * g;
            adjoints.scalars[t.id] += (1.0 - share) * g;
        });
        out
    }

    /// The smaller.
    pub(super) fn min(&self, s: Scalar, t: Scalar) -> Scalar {
        if t.value < s.value { t } else { s }
    }

    /// For odds S and contents of at most κ: ε of `positions`, `1 − ε`, and what both variances
    /// shrink by, `4ε(1−ε)` or 1.
    pub(super) fn off(&self, kappa: Scalar, odds: Upper) -> [Scalar; 3] {
        let k = 2.0 * kappa.value.to_f64();
        let (epsilon, keep) = {
            // Beyond 700 the exponential overflows, and nothing is known.
            let grown = if k < 700.0 { k.exp() * (1.0 + EXPONENTIAL) } else { f64::INFINITY };
            let x = odds * Upper::from_f64(grown);
            let epsilon = match x.to_f64() {
                x if x.is_finite() => (x / (1.0 + x) * (1.0 + EXPONENTIAL)).min(1.0),
                _ => 1.0,
            };
            let keep = (1.0 - epsilon).next_down().max(0.0);
            ((1.0 - keep).next_up().min(1.0), keep)
        };
        // 4ε(1−ε) increases up to ½, so that an ε that is too large makes it no smaller.
        let near = epsilon < 0.5;
        let up = Upper::from_f64;
        let shrink = match near {
            true => up(4.0) * up(epsilon) * up((1.0 - epsilon).next_up()),
            false => Upper::ONE,
        };
        let out = [Upper::from_f64(epsilon), Upper::from_f64(keep), shrink].map(|x| self.scalar(x));
        self.record(move |adjoints| {
            let [e, q, f] = out.map(|s| adjoints.scalars[s.id]);
            let by_epsilon = if near { e + f * (1.0 - epsilon / (1.0 - epsilon)) } else { e };
            if k.is_finite() {
                adjoints.scalars[kappa.id] += k * ((1.0 - epsilon) * by_epsilon - epsilon * q);
            }
        });
        out
    }

    /// For stacked square A and B, each cut up among registers: L with `LLᵀ ⪰ AAᵀ` and
    /// `LLᵀ ⪰ BBᵀ`, from `AAᵀ + (BBᵀ − AAᵀ)₊`, cut up likewise.
    pub(super) fn dominate(&self, a: &[Var], b: &[Var]) -> Option<Vec<Var>> {
        let fits = |(a, b): (&Var, &Var)| a.value.rows == b.value.rows;
        if a.len() != b.len() || !a.iter().zip(b).all(fits) {
            return None;
        }
        let scales: Vec<i64> =
            a.iter().zip(b).map(|(a, b)| common(&[&a.value, &b.value])).collect();
        let at = |of: &[Var]| -> Approx {
            let parts: Vec<_> = of.iter().zip(&scales).map(|(x, e)| x.value.at(*e)).collect();
            let error = parts.iter().fold(Upper::ZERO, |s, p| s + p.error * p.error).sqrt();
            let rows = parts.iter().map(|p| p.rows).sum();
            let columns = parts.first().map_or(0, |p| p.columns);
            Approx::new(rows, columns, joined(&parts), 0, error)
        };
        let (sa, sb) = (at(a), at(b));
        let n = sa.rows;
        let above = super::approx::above(&sa, &sb)?;
        let mut blocks = vec![Enclosed::Dense(&sa), Enclosed::Dense(&above.factor)];
        let lift = if self.searching() { None } else { Some(above.lift(&sa, &sb)?) };
        if let Some(lift) = &lift {
            blocks.push(Enclosed::Diagonal(0, lift));
        }
        let l = Approx::enclose(n, &blocks)?;
        let mut outs = Vec::new();
        let mut from = 0;
        for (x, scale) in a.iter().zip(&scales) {
            let rows = x.value.rows;
            let data = l.data[from * n..(from + rows) * n].to_vec();
            outs.push(self.var(Approx::new(rows, n, data, l.exponent + scale, Upper::ZERO)));
            from += rows;
        }
        if self.recording() {
            let (a, b, outs) = (a.to_vec(), b.to_vec(), outs.clone());
            let (values, vectors) = (above.values, above.vectors);
            return Some({
                let out = outs.clone();
                self.record(move |adjoints| {
                    let mut g = vec![0.0; n * n];
                    let mut first = 0;
                    for (out, scale) in outs.iter().zip(&scales) {
                        if let Some(own) = adjoints.take(out.id) {
                            let shift = power(l.exponent + scale - out.value.exponent);
                            let to = &mut g[first..first + own.len()];
                            to.iter_mut().zip(&own).for_each(|(to, x)| *to = shift * x);
                        }
                        first += out.value.rows * n;
                    }
                    let inverse = inverse_transpose(&l);
                    let mut c = vec![0.0; n * n];
                    // By LLᵀ itself, at the scales of the registers.
                    let shift = 0.5 * power(inverse.exponent - l.exponent);
                    product(Strided::dense(&g, n), inverse.view().t(), shift, &mut c);
                    symmetric(&mut c, n);
                    // The derivative of the positive part: V (Γ ∘ VᵀCV) Vᵀ.
                    let v = Strided::dense(&vectors, n);
                    let (mut half, mut k) = (vec![0.0; n * n], vec![0.0; n * n]);
                    product(v.t(), Strided::dense(&c, n), 1.0, &mut half);
                    product(Strided::dense(&half, n), v, 1.0, &mut k);
                    for i in 0..n {
                        for j in 0..n {
                            let (x, y) = (values[i], values[j]);
                            let gamma = match (x > 0.0, y > 0.0) {
                                (true, true) => 1.0,
                                (false, false) => 0.0,
                                _ => x.max(y) / (x - y).abs().max(f64::MIN_POSITIVE),
                            };
                            k[i * n + j] *= gamma;
                        }
                    }
                    half.fill(0.0);
                    product(v, Strided::dense(&k, n), 1.0, &mut half);
                    k.fill(0.0);
                    product(Strided::dense(&half, n), v.t(), 1.0, &mut k);
                    let rest: Vec<f64> = c.iter().zip(&k).map(|(c, k)| c - k).collect();
                    for (of, stack, c) in [(&a, &sa, &rest), (&b, &sb, &k)] {
                        let mut all = vec![0.0; n * stack.columns];
                        let over = 2.0 * power(stack.exponent);
                        product(Strided::dense(c, n), stack.view(), over, &mut all);
                        let mut first = 0;
                        for (x, scale) in of.iter().zip(&scales) {
                            let shift = power(x.value.exponent - scale);
                            let len = x.value.data.len();
                            adjoints.add_scaled(x, shift, &all[first..first + len]);
                            first += len;
                        }
                    }
                });
                out
            });
        }
        Some(outs)
    }

    /// Scales `√(1/w_k)` for weights w of terms that are added: by the Cauchy–Schwarz inequality
    /// `Σ N_k z_k` with `‖z_k‖ ≤ 1` is `Σ (N_k/√w_k) (√w_k z_k)`, and `Σ w_k‖z_k‖² ≤ 1`. `sizes` are
    /// the logarithms of the sizes of the terms, where a search starts.
    pub(super) fn shares(&self, what: &str, sizes: &[f64]) -> Option<Vec<Scalar>> {
        if sizes.len() == 1 {
            return Some(vec![self.scalar(Upper::ONE)]);
        }
        let (slot, e) = self.multipliers.borrow_mut().shares(what, sizes)?;
        let sum = e.iter().fold(Upper::ZERO, |sum, e| sum + Upper::from_f64(*e));
        let scales: Vec<Scalar> = e.iter().map(|e| self.scalar(sum.div_up(*e).sqrt())).collect();
        let (out, total) = (scales.clone(), e.iter().sum::<f64>());
        self.record(move |adjoints| {
            let g: Vec<f64> = out.iter().map(|s| adjoints.scalars[s.id]).collect();
            let all: f64 = g.iter().sum();
            for (k, g) in g.iter().enumerate() {
                adjoints.multipliers[slot][k] += 0.5 * (e[k] / total * all - g);
            }
        });
        Some(scales)
    }

    /// One lower triangular matrix L whose rows are cut up among `registers` again: the smallest
    /// ellipsoid that contains the stacked `Σ_k B_k z_k`, `Σ‖z_k‖² ≤ 1`. A register is a list of
    /// blocks, one for each k.
    pub(super) fn enclose(&self, registers: &[&[Block]]) -> Option<Vec<Var>> {
        let heights: Vec<usize> = registers.iter().map(|r| height(r)).collect();
        let total: usize = heights.iter().sum();
        // Each register at its own scale, so that none drowns in another's rounding.
        let scale = |r: &[Block]| {
            let values: Vec<&Approx> = r.iter().filter_map(Block::value).collect();
            common(&values)
        };
        let scales: Vec<i64> = registers.iter().map(|r| scale(r)).collect();
        let mut stacked = Vec::new();
        for k in 0..registers.first().map_or(0, |r| r.len()) {
            let used: Vec<usize> =
                (0..registers.len()).filter(|i| registers[*i][k].value().is_some()).collect();
            let from = |i: usize| heights[..i].iter().sum::<usize>();
            match used[..] {
                [] => {}
                [i] if matches!(registers[i][k], Block::Diagonal(_)) => {
                    let d = registers[i][k].value()?;
                    let d = Approx { exponent: d.exponent - scales[i], ..d.clone() };
                    stacked.push((k, Some(from(i)), d));
                }
                _ => {
                    let columns = registers[used[0]][k].width()?;
                    let mut data = vec![0.0; total * columns];
                    let mut error = Upper::ZERO;
                    for &i in &used {
                        let b = registers[i][k].value()?;
                        let whole;
                        let b = if matches!(registers[i][k], Block::Diagonal(_)) {
                            whole = b.spread();
                            &whole
                        } else {
                            b
                        };
                        let b = b.at(scales[i]);
                        let first = from(i) * columns;
                        data[first..first + b.data.len()].copy_from_slice(&b.data);
                        error = error + b.error * b.error;
                    }
                    let b = Approx::new(total, columns, data, 0, error.sqrt());
                    stacked.push((k, None, b));
                }
            }
        }
        let blocks: Vec<Enclosed<'_>> = stacked
            .iter()
            .map(|(_, at, b)| match at {
                Some(from) => Enclosed::Diagonal(*from, b),
                None => Enclosed::Dense(b),
            })
            .collect();
        let l = Approx::enclose(total, &blocks)?;
        let mut out = Vec::new();
        for (i, h) in heights.iter().enumerate() {
            let from = heights[..i].iter().sum::<usize>();
            let data = l.data[from * total..(from + h) * total].to_vec();
            out.push(self.var(Approx::new(*h, total, data, l.exponent + scales[i], Upper::ZERO)));
        }
        if self.recording() {
            let (outs, registers) =
                (out.clone(), registers.iter().map(|r| r.to_vec()).collect::<Vec<_>>());
            self.record(move |adjoints| {
                // Of L, at the scales of the registers: dJ = tr(C dP) with C = ½ sym(L̄ L⁻¹).
                let mut g = vec![0.0; total * total];
                let mut any = false;
                for (i, out) in outs.iter().enumerate() {
                    let Some(own) = adjoints.take(out.id) else { continue };
                    any = true;
                    let first = heights[..i].iter().sum::<usize>() * total;
                    let shift = power(l.exponent + scales[i] - out.value.exponent);
                    g[first..first + own.len()]
                        .iter_mut()
                        .zip(&own)
                        .for_each(|(to, x)| *to = shift * x);
                }
                if !any {
                    return;
                }
                let inverse = inverse_transpose(&l);
                let shift = power(inverse.exponent + l.exponent);
                let mut c = vec![0.0; total * total];
                let dense = Strided::dense(&g, total);
                product(dense, inverse.view().t(), 0.5 * shift, &mut c);
                symmetric(&mut c, total);
                // B̄ = 2 C B, where c is over the scale of l.
                for (k, at, b) in &stacked {
                    let over = power(b.exponent - 2 * l.exponent);
                    // 2^(−2 l.exponent) makes C that of the matrix itself.
                    match at {
                        Some(from) => {
                            let i = (0..heights.len()).find(|i| {
                                heights[..*i].iter().sum::<usize>() == *from
                                    && registers[*i][*k].value().is_some()
                            });
                            let Some(i) = i else { continue };
                            let Block::Diagonal(d) = &registers[i][*k] else { continue };
                            let shift = power(d.value.exponent - scales[i]);
                            adjoints.add(d, |to| {
                                for (j, to) in to.iter_mut().enumerate() {
                                    let n = from + j;
                                    *to += 2.0 * c[n * total + n] * b.data[j] * over * shift;
                                }
                            });
                        }
                        None => {
                            let mut all = vec![0.0; total * b.columns];
                            product(Strided::dense(&c, total), b.view(), 2.0 * over, &mut all);
                            for (i, register) in registers.iter().enumerate() {
                                let first = heights[..i].iter().sum::<usize>() * b.columns;
                                let own = &all[first..first + heights[i] * b.columns];
                                match &register[*k] {
                                    Block::Zero => {}
                                    Block::Dense(x) => {
                                        let shift = power(x.value.exponent - scales[i]);
                                        adjoints.add_scaled(x, shift, own);
                                    }
                                    Block::Diagonal(d) => {
                                        let shift = power(d.value.exponent - scales[i]);
                                        let n = b.columns;
                                        adjoints.add(d, |to| {
                                            (0..n).for_each(|j| to[j] += shift * own[j * n + j]);
                                        });
                                    }
                                }
                            }
                        }
                    }
                }
            });
        }
        Some(out)
    }

    /// Adds unknowns ω with `‖ω_i‖ ≤ |u_i ζ|` for rows u_i, or for all rows together: for any
    /// positive t with `H = I − Σ t_i u_iᵀu_i ≻ 0`,
    ///
    /// ```text
    /// ζᵀ H ζ + Σ t_i ω_i² ≤ ‖ζ‖² ≤ 1,
    /// ```
    ///
    /// so with `H ⪰ LLᵀ` the pair is `ζ = L⁻ᵀ ζ'` and `ω_i = ω'_i/√t_i` for a point (ζ', ω') of the
    /// unit ball: the S-procedure. Gives `x L⁻ᵀ` for each matrix of `all`, and the row of 1/√t.
    ///
    /// `u` are the indices in `all` of the matrices whose rows are the u_i; `whole` says of each
    /// whether its rows are bounded together, so that they share one t.
    pub(super) fn rebase(
        &self,
        what: &str,
        all: &[Var],
        u: &[(usize, bool)],
    ) -> Option<(Vec<Var>, Vec<Var>)> {
        let rows: Vec<usize> = u.iter().map(|(i, _)| all[*i].value.rows).collect();
        let group: Vec<usize> =
            rows.iter().zip(u).map(|(n, (_, w))| if *w { 1 } else { *n }).collect();
        let values: Vec<&Approx> = u.iter().map(|(i, _)| &*all[*i].value).collect();
        let stack = stacked(&values);
        let spread = |t: &[f64]| -> Vec<f64> {
            let (mut out, mut from) = (Vec::new(), 0);
            for (n, g) in rows.iter().zip(&group) {
                (0..*n).for_each(|i| out.push(t[from + if *g == 1 { 0 } else { i }]));
                from += g;
            }
            out
        };
        let count: usize = group.iter().sum();
        // t over 4^−exponent.
        let found = self.multipliers.borrow_mut().slopes(what, count, &stack, &spread)?;
        let (t, exponent) = (found.t, found.exponent);
        // What is proven is about the squares of these roots, which are near the t.
        let root: Vec<f64> = t.iter().map(|t| t.sqrt()).collect();
        let each = spread(&root);
        let root_row = Approx::exact(1, each.len(), each.clone());
        let mut scaled_rows = stack.diagonal_times(&root_row);
        scaled_rows.exponent += exponent;
        let found_cut = if self.searching() {
            super::approx::cut_near(&scaled_rows)
        } else {
            cut(&scaled_rows)
        }?;
        let inverse = inverse_transpose(&found_cut.l);
        let solve = |x: &Var| {
            if self.searching() {
                self.var(x.value.times(&inverse))
            } else {
                self.var(found_cut.solve(&x.value, &inverse))
            }
        };
        let out: Vec<Var> = all.iter().map(solve).collect();
        let one_over = |root: f64| Upper::ONE.div_up(root).to_f64();
        let mut noise = Vec::new();
        let mut first = 0;
        for (n, g) in rows.iter().zip(&group) {
            let own = |i: usize| one_over(root[first + if *g == 1 { 0 } else { i }]);
            let data = (0..*n).map(own).collect();
            noise.push(self.var(Approx::new(1, *n, data, -exponent, Upper::ZERO)));
            first += g;
        }
        if self.recording() {
            let (all, outs, noises, u) = (all.to_vec(), out.clone(), noise.clone(), u.to_vec());
            let (slot, search) = (found.slot, found.search);
            self.record(move |adjoints| {
                let r = inverse.rows;
                let mut s = vec![0.0; r * r];
                for (x, y) in all.iter().zip(&outs) {
                    let Some(g) = adjoints.take(y.id) else { continue };
                    let shift = power(x.value.exponent + inverse.exponent - y.value.exponent);
                    let dense = Strided::dense(&g, r);
                    product(y.value.view().t(), dense, 1.0, &mut s);
                    adjoints.add(x, |to| product(dense, inverse.view().t(), shift, to));
                }
                symmetric(&mut s, r);
                // dJ = tr(C dH) with C = −½ L⁻ᵀ S L⁻¹.
                let mut half = vec![0.0; r * r];
                product(inverse.view(), Strided::dense(&s, r), 1.0, &mut half);
                let mut c = vec![0.0; r * r];
                let over = -0.5 * power(2 * inverse.exponent);
                product(Strided::dense(&half, r), inverse.view().t(), over, &mut c);
                // With V = √t U: dH = −d(VᵀV), so V̄ = −2 V C.
                let mut v = vec![0.0; scaled_rows.data.len()];
                let over = -2.0 * power(2 * scaled_rows.exponent);
                product(scaled_rows.view(), Strided::dense(&c, r), over, &mut v);
                // By log t_i: ½ ⟨V̄_i, V_i⟩, and −½ from 1/√t_i.
                let mut by: Vec<f64> = v
                    .chunks(r)
                    .zip(scaled_rows.data.chunks(r))
                    .map(|(g, x)| 0.5 * g.iter().zip(x).map(|(g, x)| g * x).sum::<f64>())
                    .collect();
                let mut first = 0;
                for n in &noises {
                    if let Some(g) = adjoints.take(n.id) {
                        for (i, g) in g.iter().enumerate() {
                            by[first + i] -= 0.5 * g * n.value.data[i];
                        }
                    }
                    first += n.value.columns;
                }
                // t = κ t̂/λ, and d log λ = Σ t̂_i (u_i·v)²/λ (d log t̂_i + 2 d log u_i).
                let all_by: f64 = by.iter().sum();
                let top = &search.top;
                let pull: Vec<f64> = scaled_rows.data.chunks(r).map(|row| dot(row, top)).collect();
                let whole: f64 = pull.iter().map(|p| p * p).sum::<f64>().max(f64::MIN_POSITIVE);
                for (i, p) in pull.iter().enumerate() {
                    by[i] -= all_by * p * p / whole;
                    let factor = -2.0 * all_by * p / whole;
                    v[i * r..(i + 1) * r].iter_mut().zip(top).for_each(|(v, t)| *v += factor * t);
                }
                // V = √t U.
                let mut first = 0;
                for (i, _) in &u {
                    let x = &all[*i];
                    let n = x.value.rows;
                    let shift = power(
                        x.value.exponent - stack.exponent + stack.exponent + exponent
                            - scaled_rows.exponent,
                    );
                    adjoints.add(x, |to| {
                        for (j, to) in to.chunks_mut(r).enumerate() {
                            let root = each[first + j] * shift;
                            let v = &v[(first + j) * r..(first + j + 1) * r];
                            to.iter_mut().zip(v).for_each(|(to, v)| *to += root * v);
                        }
                    });
                    first += n;
                }
                let (mut at, mut from) = (0, 0);
                for (n, g) in rows.iter().zip(&group) {
                    for i in 0..*n {
                        let k = from + if *g == 1 { 0 } else { i };
                        adjoints.multipliers[slot][k] += by[at + i];
                    }
                    (at, from) = (at + n, from + g);
                }
                adjoints.multipliers[slot][count] += all_by * (1.0 - search.kappa);
            });
        }
        Some((out, noise))
    }

    /// The derivatives with respect to all multipliers, and to each of the `leaves`, of what has
    /// these derivatives itself.
    pub(super) fn gradient(
        self,
        of: Derivative,
        leaves: &[Var],
    ) -> (Gradient, Vec<Option<Vec<f64>>>) {
        let n = self.count.get();
        let mut adjoints = Adjoints {
            matrices: (0..n).map(|_| None).collect(),
            scalars: vec![0.0; n],
            multipliers: self.multipliers.borrow().zeros(),
        };
        match of {
            Derivative::TwiceLog(of) => adjoints.scalars[of.id] = 2.0,
            Derivative::Of(parts) => {
                for (var, g) in parts {
                    if let Some(g) = g {
                        adjoints.add_scaled(&var, 1.0, &g);
                    }
                }
            }
        }
        let mut steps = self.steps.map(RefCell::into_inner).unwrap_or_default();
        while let Some(step) = steps.pop() {
            step(&mut adjoints);
        }
        let slots = self.multipliers.into_inner().slots;
        let gradient = slots.into_iter().map(|slot| slot.of).zip(adjoints.multipliers).collect();
        (gradient, leaves.iter().map(|leaf| adjoints.matrices[leaf.id].take()).collect())
    }
}

/// The derivative by the logarithm of each multiplier, by its step.
pub(super) type Gradient = Vec<(String, Vec<f64>)>;

/// Where differentiation starts.
pub(super) enum Derivative {
    /// At `2 log s`.
    TwiceLog(Scalar),
    /// At what has these derivatives with respect to matrices of the tape.
    Of(Vec<(Var, Option<Vec<f64>>)>),
}

/// What a register holds of one block of unknowns.
#[derive(Clone)]
pub(super) enum Block {
    /// Nothing.
    Zero,
    /// A diagonal matrix, as a row.
    Diagonal(Var),
    /// A matrix.
    Dense(Var),
}

impl Block {
    pub(super) fn var(&self) -> Option<&Var> {
        match self {
            Self::Zero => None,
            Self::Diagonal(x) | Self::Dense(x) => Some(x),
        }
    }

    pub(super) fn var_mut(&mut self) -> Option<&mut Var> {
        match self {
            Self::Zero => None,
            Self::Diagonal(x) | Self::Dense(x) => Some(x),
        }
    }

    pub(super) fn value(&self) -> Option<&Approx> {
        self.var().map(|x| &*x.value)
    }

    /// The number of unknowns, where it is known.
    pub(super) fn width(&self) -> Option<usize> {
        self.value().map(|x| x.columns)
    }
}

/// Rows of a register; 0 if it holds nothing.
pub(super) fn height(register: &[Block]) -> usize {
    let of = |b: &Block| match b {
        Block::Zero => None,
        Block::Diagonal(d) => Some(d.value.columns),
        Block::Dense(x) => Some(x.value.rows),
    };
    register.iter().find_map(of).unwrap_or(0)
}

/// Matrices on top of one another.
fn stacked(parts: &[&Approx]) -> Approx {
    let top = common(parts);
    let parts: Vec<_> = parts.iter().map(|p| p.at(top)).collect();
    let columns = parts.first().map_or(0, |p| p.columns);
    let rows = parts.iter().map(|p| p.rows).sum();
    let error = parts.iter().fold(Upper::ZERO, |sum, p| sum + p.error * p.error).sqrt();
    let data = joined(&parts);
    Approx::new(rows, columns, data, top, error)
}

/// All rows.
fn joined(parts: &[Cow<'_, Approx>]) -> Vec<f64> {
    parts.iter().map(|p| &p.data[..]).collect::<Vec<_>>().concat()
}

fn symmetric(x: &mut [f64], n: usize) {
    for i in 0..n {
        for j in 0..i {
            let mean = 0.5 * (x[i * n + j] + x[j * n + i]);
            (x[i * n + j], x[j * n + i]) = (mean, mean);
        }
    }
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn length(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

/// `m v`
pub(super) fn along(m: Strided<'_, f64>, v: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; m.rows];
    matmul(&mut out, 1, m, Strided::dense(v, 1), false, 1.0, false);
    out
}

/// `to += g u vᵀ`
fn outer(g: f64, u: &[f64], v: &[f64], to: &mut [f64]) {
    for (row, u) in to.chunks_mut(v.len()).zip(u) {
        row.iter_mut().zip(v).for_each(|(to, v)| *to += g * u * v);
    }
}

/// s/t as a plain number.
fn ratio(s: Upper, t: Upper) -> f64 {
    let ((a, e), (b, f)) = (s.parts(), t.parts());
    if a == 0.0 || b == 0.0 {
        return 0.0;
    }
    scaled(a / b, (e - f).clamp(-2000, 2000) as i32)
}
