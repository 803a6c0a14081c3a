//! Linear functionals of a value: what the change of an output is, to first order.

use lipschitz_nn::linalg::{Strided, matmul};

use crate::spectral::{Matrix, vector_norm};
use crate::upper::Upper;

/// Functionals `Σ_t λ_t · Δ_t`, several at once, over the tokens where any of them is not 0.
#[derive(Clone, Debug)]
pub(super) struct Functionals {
    /// How many.
    pub(super) count: usize,
    /// The tokens that they read, ascending.
    pub(super) tokens: Vec<usize>,
    /// Elements per token.
    pub(super) width: usize,
    /// `[count, tokens, width]`
    pub(super) data: Vec<f64>,
}

impl Functionals {
    /// All 0 over these tokens.
    pub(super) fn zeros(count: usize, tokens: Vec<usize>, width: usize) -> Self {
        let data = vec![0.0; count * tokens.len() * width];
        Self { count, tokens, width, data }
    }

    /// The elements of one token.
    pub(super) fn elements(token: usize, width: usize) -> Self {
        let mut own = Self::zeros(width, vec![token], width);
        (0..width).for_each(|i| own.data[i * width + i] = 1.0);
        own
    }

    /// λ_t of each functional and token, with the number of the functional and the token.
    pub(super) fn rows(&self) -> impl Iterator<Item = (usize, usize, &[f64])> {
        let n = self.tokens.len().max(1);
        let rows = self.data.chunks(self.width.max(1));
        rows.enumerate().map(move |(i, row)| (i / n, self.tokens[i % n], row))
    }

    /// The same, to change.
    pub(super) fn rows_mut(&mut self) -> impl Iterator<Item = (usize, &mut [f64])> {
        let (n, tokens) = (self.tokens.len().max(1), &self.tokens);
        let rows = self.data.chunks_mut(self.width.max(1));
        rows.enumerate().map(move |(i, row)| (tokens[i % n], row))
    }

    /// One functional over one token, the number of which is its place in [`Self::tokens`].
    pub(super) fn row(&self, k: usize, at: usize) -> &[f64] {
        let first = (k * self.tokens.len() + at) * self.width;
        &self.data[first..first + self.width]
    }

    /// The same, to change.
    pub(super) fn row_mut(&mut self, k: usize, at: usize) -> &mut [f64] {
        let first = (k * self.tokens.len() + at) * self.width;
        &mut self.data[first..first + self.width]
    }

    /// All functionals of one token, the number of which is its place in [`Self::tokens`], as a matrix.
    pub(super) fn of_token(&self, at: usize) -> Matrix {
        let data = (0..self.count).flat_map(|k| self.row(k, at).iter().copied()).collect();
        Matrix { rows: self.count, columns: self.width, data }
    }

    /// Each token with the Frobenius norm of all functionals of it.
    pub(super) fn together(&self) -> impl Iterator<Item = (usize, Upper)> {
        let of = |at: usize| {
            let squares = (0..self.count).map(|k| vector_norm(self.row(k, at)));
            squares.fold(Upper::ZERO, |sum, x| sum + x * x).sqrt()
        };
        self.tokens.iter().copied().enumerate().map(move |(at, t)| (t, of(at)))
    }

    /// `‖λ_t‖` of each functional and token, `[count, tokens]`.
    pub(super) fn norms(&self) -> Vec<Upper> {
        self.data.chunks(self.width.max(1)).map(vector_norm).collect()
    }

    /// `λ W` for each token.
    pub(super) fn times(&self, w: &Matrix) -> Self {
        let rows = self.count * self.tokens.len();
        let data = product(&self.data, rows, self.width, &w.data, w.columns);
        Self { count: self.count, tokens: self.tokens.clone(), width: w.columns, data }
    }

    /// `factor · λ`
    pub(super) fn scaled(mut self, factor: f64) -> Self {
        self.data.iter_mut().for_each(|x| *x *= factor);
        self
    }

    /// The same without the tokens that no functional reads.
    pub(super) fn trimmed(self) -> Self {
        let read = |at: &usize| (0..self.count).any(|k| self.row(k, *at).iter().any(|x| *x != 0.0));
        let kept: Vec<usize> = (0..self.tokens.len()).filter(read).collect();
        if kept.len() == self.tokens.len() {
            return self;
        }
        let tokens = kept.iter().map(|at| self.tokens[*at]).collect();
        let mut out = Self::zeros(self.count, tokens, self.width);
        for k in 0..self.count {
            for (to, at) in kept.iter().enumerate() {
                out.row_mut(k, to).copy_from_slice(self.row(k, *at));
            }
        }
        out
    }

    /// The sum of both, over the tokens of both.
    pub(super) fn plus(self, other: &Self) -> Self {
        let mut tokens = [&self.tokens[..], &other.tokens[..]].concat();
        tokens.sort_unstable();
        tokens.dedup();
        let mut out = Self::zeros(self.count, tokens, self.width);
        for from in [&self, other] {
            for (k, t, row) in from.rows() {
                if let Ok(at) = out.tokens.binary_search(&t) {
                    out.row_mut(k, at).iter_mut().zip(row).for_each(|(to, x)| *to += x);
                }
            }
        }
        out
    }
}

/// `A B` with A `[m, n]` and B `[n, p]`, in any order of its sums.
pub(super) fn product(a: &[f64], m: usize, n: usize, b: &[f64], p: usize) -> Vec<f64> {
    let mut out = vec![0.0; m * p];
    if n > 0 && !out.is_empty() {
        let (a, b) = (Strided::dense(&a[..m * n], n), Strided::dense(&b[..n * p], p));
        matmul(&mut out, p, a, b, false, 1.0, true);
    }
    out
}
