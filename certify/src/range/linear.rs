//! Linear maps, row by row: the largest element of `W x + b`.
//!
//! For a token `x = c + γ ∘ z` with `‖z‖ ≤ r` and elements up to u, an element of `W x + b` is
//!
//! ```text
//! |w_i x + b_i| ≤ min( |w_i c + b_i| + ‖w_i ∘ γ‖ r,  Σ_j |w_ij| u_j + |b_i| ).
//! ```
//!
//! Where the elements of z add up to 0, any constant can be taken from `w_i ∘ γ`. Where x is known as
//! a sum of means, so is `W x + b` (`hull`).

use lipschitz_nn::linalg::{Strided, matmul};
use rayon::prelude::*;

use super::hull::Hull;
use super::set::{Set, largest, norm, tiny};
use crate::spectral::{Matrix, gamma, vector_norm};
use crate::upper::{Upper, abs};

/// A linear map of a [`Set`].
pub(super) struct Image {
    /// `W c + b`; none is 0.
    pub(super) centre: Option<Vec<f64>>,
    /// Bound on the ℓ2 norm of what rounding took from the centre.
    pub(super) off: Upper,
    /// `‖w_i ∘ γ‖` of each row.
    pub(super) rows: Vec<Upper>,
    /// Bounds on the elements.
    pub(super) elements: Vec<Upper>,
    /// The sum of means but for the image of this ball.
    pub(super) hull: Option<(Hull, Upper)>,
}

/// One row's share.
struct Row {
    centre: f64,
    off: Upper,
    norm: Upper,
    element: Upper,
}

impl Image {
    pub(super) fn new(w: &Matrix, bias: Option<&[f64]>, x: &Set) -> Self {
        let box_of: Vec<f64> = x.elements.iter().map(|u| u.to_f64()).collect();
        let gain = x.gain.as_ref().map(|(_, gain)| gain.as_slice());
        let centre = x.centre.as_deref();
        let sums = gamma(2 * w.columns + 6);
        let row = |(i, row): (usize, &[f64])| {
            let b = bias.map_or(0.0, |b| b[i]);
            let norm = row_norm(row, gain, x.centred);
            let (mut at, mut size) = (b, b.abs());
            if let Some(c) = centre {
                at += row.iter().zip(c).map(|(w, c)| w * c).sum::<f64>();
                size += row.iter().zip(c).map(|(w, c)| (w * c).abs()).sum::<f64>();
            }
            let off = match centre {
                Some(_) => sums * abs(size) + tiny(w.columns),
                None => Upper::ZERO,
            };
            let ball = abs(at) + off + norm * x.radius;
            let within = row.iter().zip(&box_of).map(|(w, u)| w.abs() * u).sum::<f64>();
            let within = abs(within) * (Upper::ONE + sums) + tiny(w.columns) + abs(b);
            Row { centre: at, off, norm, element: ball.min(within) }
        };
        let mut rows: Vec<Row> = w.data.par_chunks(w.columns.max(1)).enumerate().map(row).collect();
        let hull = x.hull.as_ref().and_then(|hull| Some((hull.image(w, bias)?, hull.rest)));
        if let Some((hull, rest)) = &hull {
            let maps = w.data.chunks(w.columns.max(1)).map(vector_norm);
            for ((row, element), map) in rows.iter_mut().zip(hull.elements()).zip(maps) {
                row.element = row.element.min(element + hull.rest + map * *rest);
            }
        }
        let known = centre.is_some() || bias.is_some();
        Self {
            centre: known.then(|| rows.iter().map(|row| row.centre).collect()),
            off: norm(&rows.iter().map(|row| row.off).collect::<Vec<_>>()),
            rows: rows.iter().map(|row| row.norm).collect(),
            elements: rows.iter().map(|row| row.element).collect(),
            hull,
        }
    }

    /// The image as a set, with the norm of `W diag γ` and the radius that it is of.
    pub(super) fn set(self, map: Upper, radius: Upper) -> Set {
        let radius = map.min(norm(&self.rows)) * radius + self.off;
        let (centre, elements) = (self.centre, self.elements);
        let hull = self.hull.map(|(hull, rest)| hull.more(map * rest));
        let mut set = Set { centre, gain: None, centred: false, radius, elements, hull };
        set.tidy();
        set
    }
}

/// `‖w ∘ γ‖`, or the distance of that from some constant vector.
fn row_norm(row: &[f64], gain: Option<&[f64]>, centred: bool) -> Upper {
    let eps = Upper::from_f64(4.0 * f64::EPSILON);
    let folded: Vec<f64>;
    let (v, off) = match gain {
        None => (row, Upper::ZERO),
        Some(gain) => {
            folded = row.iter().zip(gain).map(|(w, g)| w * g).collect();
            // Each product is rounded once.
            (&folded[..], vector_norm(&folded) * eps + tiny(row.len()))
        }
    };
    let whole = vector_norm(v) + off;
    if !centred {
        return whole;
    }
    let mean = v.iter().sum::<f64>() / v.len().max(1) as f64;
    let rest: Vec<f64> = v.iter().map(|x| x - mean).collect();
    whole.min(vector_norm(&rest) * (Upper::ONE + eps) + off + tiny(row.len()))
}

/// The norm of each row of `A B diag γ`.
pub(super) fn product_rows(a: &Matrix, b: &Matrix, gain: Option<&[f64]>) -> Vec<Upper> {
    let mut b = b.clone();
    if let Some(gain) = gain {
        b.scale_columns(gain);
    }
    let mut out = vec![0.0; a.rows * b.columns];
    let (left, right) =
        (Strided::dense(&a.data, a.columns.max(1)), Strided::dense(&b.data, b.columns.max(1)));
    matmul(&mut out, b.columns, left, right, false, 1.0, true);
    let size = vector_norm(&b.data);
    // Each sum is off by at most γ_k Σ |a| |b|, and the elements of b by one rounding more.
    let g = gamma(a.columns + 6);
    let rows = out.chunks(b.columns.max(1)).zip(a.data.chunks(a.columns.max(1)));
    rows.map(|(row, a)| {
        let (length, lost) = (vector_norm(a), tiny(b.columns) + tiny(a.len()));
        vector_norm(row) + g * length * size + lost * (Upper::ONE + length)
    })
    .collect()
}

/// The norm of a vector times a matrix, `vᵀ B diag γ`, with v off by at most `off`; `map` is the
/// norm of `B diag γ`.
pub(super) fn along(v: &[f64], off: Upper, b: &Matrix, gain: Option<&[f64]>, map: Upper) -> Upper {
    let row = Matrix { rows: 1, columns: v.len(), data: v.to_vec() };
    largest(&product_rows(&row, b, gain)).min(vector_norm(v) * map) + off * map
}

/// A bound on the norm of a pair of rows, `[w_a; w_b]`, from their norms: the root of the largest
/// eigenvalue of their Gram matrix, which only grows with its elements.
pub(super) fn pair(a: &[f64], b: &[f64], gain: Option<&[f64]>) -> Upper {
    let ones = vec![1.0; a.len()];
    let gain = gain.unwrap_or(&ones);
    let product = |x: &[f64], y: &[f64]| -> (f64, f64) {
        x.iter().zip(y).zip(gain).fold((0.0, 0.0), |(sum, size), ((x, y), g)| {
            let term = (x * g) * (y * g);
            (sum + term, size + term.abs())
        })
    };
    let g = gamma(a.len() + 8);
    let above = |(sum, size): (f64, f64)| abs(sum) + g * abs(size) + tiny(a.len());
    let (aa, bb, ab) = (above(product(a, a)), above(product(b, b)), above(product(a, b)));
    // λ = (A + C)/2 + √(((A − C)/2)² + B²) ≤ max(A, C) + B
    let (x, z, y) = (aa.to_f64(), bb.to_f64(), ab.to_f64());
    let root = (0.5 * (x - z)).hypot(y);
    let eigenvalue = abs((0.5 * (x + z) + root) * (1.0 + 16.0 * f64::EPSILON));
    (eigenvalue + tiny(4)).min(aa + bb).sqrt()
}
