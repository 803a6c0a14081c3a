//! Tokens that become others: at most so many of an input, each one of those that it may become.
//!
//! With δ_t the change of token t, a functional `λ` of the input changes by `Σ_t λ_t·δ_t` over the
//! tokens that are replaced: it loses at most the sum of the largest of the losses
//! `max_δ (−λ_t·δ)₊`. What is left out is bounded by the deviations of the input, those of the longest
//! changes.

use super::functional::Functionals;
use super::maps::tiny;
use super::spread::{Spread, root_of_squares};
use crate::Error;
use crate::spectral::{gamma, vector_norm};
use crate::upper::{Upper, abs};

/// What the tokens of an input may become.
pub struct Replacements {
    /// The input.
    x: Vec<f64>,
    /// Changes of the embedding vector of each token, `[changes, dim]`.
    changes: Vec<Vec<f64>>,
    dim: usize,
    /// The longest change of each token.
    lengths: Vec<Upper>,
    /// The longest embedding vector behind a change.
    largest: Upper,
    /// How many tokens are replaced, at most.
    most: usize,
}

impl Replacements {
    /// Of an input of embedding vectors, `[tokens, dim]`: each token may become any of the vectors
    /// given for it, `[count, dim]`, but at most `most` of them do.
    ///
    /// # Errors
    /// [`Error::Data`] if vectors do not fit the input.
    pub fn new(x: &[f64], dim: usize, others: &[Vec<f64>], most: usize) -> Result<Self, Error> {
        let fits = dim > 0
            && x.len() == dim * others.len()
            && others.iter().all(|v| v.len().is_multiple_of(dim));
        if !fits {
            return Err(Error::Data("replacements that do not fit the tokens of the input".into()));
        }
        let (mut changes, mut lengths, mut largest) = (Vec::new(), Vec::new(), Upper::ZERO);
        for (own, others) in x.chunks(dim).zip(others) {
            let mut length = Upper::ZERO;
            let mut all = Vec::with_capacity(others.len());
            for other in others.chunks(dim) {
                let from = all.len();
                all.extend(other.iter().zip(own).map(|(y, x)| y - x));
                // Each difference is rounded once.
                let rounded = Upper::ONE + gamma(2);
                length = length.max(vector_norm(&all[from..]) * rounded);
                largest = largest.max(vector_norm(other));
            }
            changes.push(all);
            lengths.push(length);
        }
        Ok(Self { x: x.to_vec(), changes, dim, lengths, largest, most })
    }

    /// The same, with as many tokens replaced.
    pub fn up_to(&self, most: usize) -> Self {
        let (changes, lengths) = (self.changes.clone(), self.lengths.clone());
        Self { x: self.x.clone(), changes, lengths, most, ..*self }
    }

    /// Whether they are of this input.
    pub(super) fn are_of(&self, x: &[f64], dim: usize) -> bool {
        self.dim == dim && self.x == x
    }

    /// The longest embedding vector of a replacement.
    pub(super) fn largest(&self) -> Upper {
        self.largest
    }

    /// How far each token, and all together, can be from where they are.
    pub(super) fn spread(&self) -> Spread {
        let total = root_of_squares(&self.longest(self.lengths.clone()));
        Spread::new(self.lengths.clone(), total)
    }

    /// As many as are replaced, those that are largest.
    fn longest(&self, mut all: Vec<Upper>) -> Vec<Upper> {
        // No bound is NaN, so that any two compare.
        all.sort_by(|a, b| b.partial_cmp(a).unwrap_or(std::cmp::Ordering::Equal));
        all.truncate(self.most);
        all
    }

    fn sum(&self, all: Vec<Upper>) -> Upper {
        self.longest(all).into_iter().fold(Upper::ZERO, |sum, x| sum + x)
    }

    /// What functional k loses, at most.
    pub(super) fn along(&self, lambda: &Functionals, k: usize) -> Upper {
        let g = gamma(self.dim + 4);
        let losses = lambda.tokens.iter().enumerate().map(|(at, t)| {
            let (row, length) = (lambda.row(k, at), self.lengths[*t]);
            let lost = |change: &[f64]| -> f64 {
                let dot: f64 = row.iter().zip(change).map(|(l, d)| l * d).sum();
                if dot.is_nan() { f64::INFINITY } else { (-dot).max(0.0) }
            };
            let most = self.changes[*t].chunks(self.dim).map(lost).fold(0.0, f64::max);
            abs(most) + g * vector_norm(row) * length + tiny()
        });
        self.sum(losses.collect())
    }

    /// By how much a functional with these ‖λ_t‖ changes, at most.
    pub(super) fn at_most(&self, norms: &[(usize, Upper)]) -> Upper {
        self.sum(norms.iter().map(|(t, norm)| *norm * self.lengths[*t]).collect())
    }
}
