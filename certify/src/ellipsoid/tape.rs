//! Values with a record of how they were computed, so that the logarithm of the bound can be
//! differentiated with respect to every multiplier.
//!
//! A value is an [`Approx`] or an [`Upper`]. The derivative of a matrix is with respect to its
//! `data`; that of a scalar is with respect to its logarithm, so neither overflows. A tape that does
//! not record proves: it is the same arithmetic.

use std::cell::RefCell;
use std::rc::Rc;

use lipschitz_nn::linalg::{Strided, matmul};

use super::approx::Approx;
use super::multipliers::{Mode, Multipliers};
use super::positions::EXPONENTIAL;
use super::vectors::{along, dot, length, outer};
use crate::spectral::{scaled, top_right_singular_vector};
use crate::upper::Upper;

/// A matrix on the tape.
#[derive(Clone)]
pub(super) struct Var {
    pub(super) id: usize,
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
pub(super) struct Adjoints {
    matrices: Vec<Option<Vec<f64>>>,
    scalars: Vec<f64>,
    pub(super) multipliers: Vec<Vec<f64>>,
}

impl Adjoints {
    /// The derivative of a value, all uses of which are behind us.
    pub(super) fn take(&mut self, id: usize) -> Option<Vec<f64>> {
        self.matrices[id].take()
    }

    pub(super) fn add(&mut self, var: &Var, with: impl FnOnce(&mut [f64])) {
        let n = var.value.data.len();
        with(self.matrices[var.id].get_or_insert_with(|| vec![0.0; n]));
    }

    pub(super) fn add_scaled(&mut self, var: &Var, factor: f64, by: &[f64]) {
        self.add(var, |out| out.iter_mut().zip(by).for_each(|(o, x)| *o += factor * x));
    }
}

/// `2ⁿ` for moderate n, 0 or infinity beyond.
pub(super) fn power(n: i64) -> f64 {
    2f64.powi(n.clamp(-2000, 2000) as i32)
}

pub(super) fn product(a: Strided<'_, f64>, b: Strided<'_, f64>, factor: f64, out: &mut [f64]) {
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
    pub(super) fn searching(&self) -> bool {
        self.multipliers.borrow().mode == Mode::Search
    }

    pub(super) fn recording(&self) -> bool {
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

    pub(super) fn record(&self, back: impl Fn(&mut Adjoints) + 'static) {
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

/// s/t as a plain number.
fn ratio(s: Upper, t: Upper) -> f64 {
    let ((a, e), (b, f)) = (s.parts(), t.parts());
    if a == 0.0 || b == 0.0 {
        return 0.0;
    }
    scaled(a / b, (e - f).clamp(-2000, 2000) as i32)
}
