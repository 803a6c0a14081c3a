//! From functionals of the output of attention, or of its logits, to those of its input.

use candle_core::{Device, Tensor};
use lipschitz_nn::graph::Rotary;
use lipschitz_nn::ops;

use super::{Heads, longest, part_of};
use crate::Error;
use crate::local::functional::{Functionals, product};
use crate::local::maps::{rounded, tiny};
use crate::local::piece::add_error;
use crate::local::remainder::{Remainders, Term};
use crate::local::softmax::{NEGLIGIBLE, Rest, SMALL, SOFTMAX, UNITS};
use crate::spectral::{Matrix, gamma, vector_norm};
use crate::upper::{Upper, abs, count};

impl Heads {
    pub(in crate::local) fn back(
        &self,
        lambda: Functionals,
        out: &mut Remainders,
    ) -> Result<Functionals, Error> {
        let (a, n, d) = (&self.config, self.tokens, self.config.head_dim);
        let total = lambda.count;
        rounded(&lambda, &self.projected, out);
        let share = gamma(2) * abs(a.output_scale);
        out.linear(self.projected_slot, &lambda, |norm| share * norm + tiny());
        let lambda = lambda.scaled(a.output_scale);
        rounded(&lambda, &self.errors[3], out);
        let mixed = self.maps[3].back(&lambda, self.mixed_slot, out)?;
        let active = mixed.tokens.clone();
        let seen: Vec<usize> =
            (0..n).filter(|j| active.iter().any(|t| self.sees(*t, *j))).collect();
        let shared = a.key_value_heads.max(1);
        let mut to_query = Functionals::zeros(total, active.clone(), a.heads * d);
        let mut to_key = Functionals::zeros(total, seen.clone(), shared * d);
        let mut to_value = Functionals::zeros(total, seen.clone(), shared * d);
        // Σ_t of what the functionals of keys and values are made of, for their rounding.
        let mut key_sizes = vec![vec![vec![0.0_f64; seen.len()]; shared]; total];
        let mut value_sizes = key_sizes.clone();
        let mut rests: Vec<Vec<Rest>> = (0..total).map(|_| Vec::new()).collect();
        let mut constants = vec![Upper::ZERO; total];
        let jointly = out.together().is_some();
        let mut joint: Vec<Rest> = Vec::new();
        for h in 0..a.heads {
            let g = self.group(h);
            let values: Vec<f64> =
                seen.iter().flat_map(|j| part_of(&self.value, *j, g, d).iter().copied()).collect();
            let keys: Vec<f64> =
                seen.iter().flat_map(|j| part_of(&self.key, *j, g, d).iter().copied()).collect();
            let longest_value = longest(&self.value, g, d);
            let own: Vec<f64> = mixed
                .data
                .chunks(mixed.width)
                .flat_map(|row| row[h * d..(h + 1) * d].iter().copied())
                .collect();
            let transposed = transpose(&values, seen.len(), d);
            // a_j = λ·v_j of every functional and query.
            let rows = total * active.len();
            let along = product(&own, rows, d, &transposed, seen.len());
            let mut pulls = vec![0.0; rows * seen.len()];
            let mut gaps = vec![0.0; if jointly { pulls.len() } else { 0 }];
            for i in 0..rows {
                let (k, t) = (i / active.len(), active[i % active.len()]);
                let l = &own[i * d..(i + 1) * d];
                let norm = vector_norm(l);
                if norm == Upper::ZERO {
                    continue;
                }
                let p = self.probabilities(h, t);
                let along = &along[i * seen.len()..(i + 1) * seen.len()];
                let mean: f64 = seen.iter().zip(along).map(|(j, a)| p[*j] * a).sum();
                let pull = &mut pulls[i * seen.len()..(i + 1) * seen.len()];
                // √p_j (a_j − ā), whose norm is scaled: squares of small numbers are 0.
                let mut weighted = vec![0.0; seen.len()];
                let mut apart = 0.0_f64;
                let (mut before, mut sum) = (0.0_f64, 0.0_f64);
                for (at, j) in seen.iter().enumerate() {
                    if !self.sees(t, *j) {
                        continue;
                    }
                    let gap = along[at] - mean;
                    if jointly {
                        gaps[i * seen.len() + at] = gap;
                    }
                    apart = apart.max(gap.abs());
                    weighted[at] = p[*j].sqrt() * gap;
                    pull[at] = p[*j] * gap;
                    before += pull[at].abs();
                    if let Some(slopes) = &self.slopes {
                        pull[at] *= slopes[(h * n + t) * n + *j];
                    }
                    sum += pull[at].abs();
                }
                let count_all = n + d + 64;
                let unit = norm * longest_value;
                let off = (gamma(2 * count_all) + Upper::from_f64(8.0 * SOFTMAX)) * (unit + unit)
                    + tiny();
                let wide = Upper::from_f64(apart) + off;
                let tail = count(n) * Upper::from_f64(NEGLIGIBLE) * wide * wide;
                let spread = vector_norm(&weighted);
                let share = gamma(count_all) + Upper::from_f64(2.0 * SOFTMAX);
                let sigma = (spread * spread * (Upper::ONE + share) + tail).sqrt() + off;
                let up = |x: f64| Upper::from_f64(x) * (Upper::ONE + gamma(count_all)) + tiny();
                let (sum_up, capped) = (up(sum), up(before) + off);
                let off = off + Upper::from_f64(4.0 * UNITS) * capped;
                let (q, far) =
                    (vector_norm(part_of(&self.query, t, h, d)), longest(&self.key, g, d));
                let scale = abs(a.logit_scale);
                rests[k].push(Rest {
                    at: h * n + t,
                    sigma,
                    norm,
                    apart: wide,
                    capped,
                    pull: sum_up + off,
                    off,
                    query: gamma(n + 16) * scale * sum_up * far + tiny(),
                });
                constants[k] = constants[k]
                    + norm * self.mixed_errors[h * n + t]
                    + capped * self.logit_errors[h * n + t];
                // What each key and value is given by this query.
                let (norm, q) = (norm.to_f64(), q.to_f64());
                for (at, j) in seen.iter().enumerate() {
                    value_sizes[k][g][at] += (p[*j] + SMALL) * norm;
                    key_sizes[k][g][at] += pull[at].abs() * q;
                }
                let at = i % active.len();
                let to = &mut to_query.row_mut(k, at)[h * d..(h + 1) * d];
                for (pull, key) in pull.iter().zip(keys.chunks(d)) {
                    if *pull != 0.0 {
                        let w = a.logit_scale * pull;
                        to.iter_mut().zip(key).for_each(|(to, k)| *to += w * k);
                    }
                }
                for (at, j) in seen.iter().enumerate() {
                    if p[*j] == 0.0 {
                        continue;
                    }
                    let to = &mut to_value.row_mut(k, at)[g * d..(g + 1) * d];
                    to.iter_mut().zip(l).for_each(|(to, l)| *to += p[*j] * l);
                    let w = a.logit_scale * pull[at];
                    if w != 0.0 {
                        let query = part_of(&self.query, t, h, d);
                        let to = &mut to_key.row_mut(k, at)[g * d..(g + 1) * d];
                        to.iter_mut().zip(query).for_each(|(to, q)| *to += w * q);
                    }
                }
            }
            for (at, t) in active.iter().enumerate().filter(|_| jointly) {
                let of = |x: &[f64], n: usize| Matrix {
                    rows: total,
                    columns: n,
                    data: (0..total)
                        .flat_map(|k| x[(k * active.len() + at) * n..][..n].to_vec())
                        .collect(),
                };
                let p: Vec<f64> = seen.iter().map(|j| self.probabilities(h, *t)[*j]).collect();
                let each = rests.iter().flatten().filter(|rest| rest.at == h * n + t);
                let each: Vec<&Rest> = each.collect();
                joint.push(Rest::together(&each, h * n + t, &of(&own, d), of(&gaps, p.len()), &p));
            }
        }
        let terms = active.len() * a.heads + n + 32;
        let (scale, least) = (abs(a.logit_scale), count(total) * tiny());
        let rounding = |g: usize, values: &[f64], keys: &[f64]| {
            let value = gamma(terms) + Upper::from_f64(4.0 * SOFTMAX);
            let both = [
                (self.value_slots[g], values, value),
                (self.key_slots[1][g], keys, gamma(terms) * scale),
            ];
            both.map(|(slot, sizes, share)| {
                let share = share * (Upper::ONE + gamma(terms));
                let weights = sizes.iter().map(|x| share * Upper::from_f64(*x) + least);
                Term::Linear { slot, weights: seen.iter().copied().zip(weights).collect() }
            })
        };
        if let Some(all) = out.together() {
            for rest in &joint {
                let (mixed, logit) = (self.mixed_errors[rest.at], self.logit_errors[rest.at]);
                all.push(Term::Constant(rest.norm * mixed + rest.capped * logit));
            }
            all.push(Term::Attention { slot: self.slot, rests: joint });
            for g in 0..shared {
                let [values, keys] = [&value_sizes, &key_sizes].map(|sizes| -> Vec<f64> {
                    let of = |at: usize| sizes.iter().map(|of| of[g][at]).collect::<Vec<f64>>();
                    (0..seen.len()).map(|at| vector_norm(&of(at)).to_f64()).collect()
                });
                all.extend(rounding(g, &values, &keys));
            }
        } else {
            for (k, rests) in rests.into_iter().enumerate() {
                out.push(k, Term::Constant(constants[k]));
                out.push(k, Term::Attention { slot: self.slot, rests });
                for g in 0..shared {
                    let both = rounding(g, &value_sizes[k][g], &key_sizes[k][g]);
                    both.into_iter().for_each(|term| out.push(k, term));
                }
            }
        }
        let sum = self.to_input(to_query, to_key, Some(to_value), out)?;
        Ok(pruned(sum, self.slot, out))
    }

    /// Functionals of the node's input, of such of queries, keys and values.
    fn to_input(
        &self,
        query: Functionals,
        key: Functionals,
        value: Option<Functionals>,
        out: &mut Remainders,
    ) -> Result<Functionals, Error> {
        let total = query.count;
        let query = self.unturned(0, query, out)?;
        let key = self.unturned(1, key, out)?;
        let mut sum: Option<Functionals> = None;
        for (which, lambda) in [query, key].into_iter().chain(value).enumerate() {
            rounded(&lambda, &self.errors[which], out);
            let x = self.maps[which].back(&lambda, self.slot, out)?;
            sum = Some(match sum {
                Some(sum) => {
                    add_error(&sum, self.slot, out);
                    add_error(&x, self.slot, out);
                    sum.plus(&x)
                }
                None => x,
            });
        }
        Ok(sum.unwrap_or_else(|| Functionals::zeros(total, Vec::new(), self.config.dim)))
    }

    /// The functionals of the node's input that such of the logits of a head and a query are to first order,
    /// `[count, tokens]`, the absolute values of each of which add up to at most 2: `Δℓ_j = s (Δq·k_j + q·Δk_j)`.
    ///
    /// # Errors
    /// Those of products.
    pub(in crate::local) fn back_logits(
        &self,
        h: usize,
        t: usize,
        (rows, total): (&[f64], usize),
        out: &mut Remainders,
    ) -> Result<Functionals, Error> {
        let (a, n, d, g) = (&self.config, self.tokens, self.config.head_dim, self.group(h));
        let seen: Vec<usize> = (0..n).filter(|j| self.sees(t, *j)).collect();
        let mut to_query = Functionals::zeros(total, vec![t], a.heads * d);
        let mut to_key = Functionals::zeros(total, seen.clone(), a.key_value_heads.max(1) * d);
        let query = part_of(&self.query, t, h, d);
        for (k, row) in rows.chunks(n.max(1)).enumerate() {
            for (at, j) in seen.iter().enumerate() {
                let w = a.logit_scale * row[*j];
                let to = &mut to_query.row_mut(k, 0)[h * d..(h + 1) * d];
                to.iter_mut().zip(part_of(&self.key, *j, g, d)).for_each(|(to, x)| *to += w * x);
                let to = &mut to_key.row_mut(k, at)[g * d..(g + 1) * d];
                to.iter_mut().zip(query).for_each(|(to, x)| *to += w * x);
            }
        }
        // Each element is off by γ of the absolute values that it is made of.
        let share = gamma(n + 16) * abs(a.logit_scale) * count(4 * total).sqrt();
        let (least, far) = (count(total) * tiny(), longest(&self.key, g, d));
        let keys = share * vector_norm(query) + least;
        out.linear_of_all(self.query_slots[1][h], &vec![(t, share * far + least)]);
        let weights = seen.into_iter().map(|j| (j, keys)).collect();
        out.linear_of_all(self.key_slots[1][g], &weights);
        self.to_input(to_query, to_key, None, out)
    }

    /// From queries or keys behind positions and norm to those of the maps.
    fn unturned(
        &self,
        which: usize,
        mut lambda: Functionals,
        out: &mut Remainders,
    ) -> Result<Functionals, Error> {
        let d = self.config.head_dim;
        let slots = if which == 0 { &self.query_slots } else { &self.key_slots };
        if let Some(rotary) = &self.config.rotary {
            let m = if which == 0 { &self.query } else { &self.key };
            let share = self.turning();
            let count = lambda.count;
            for (h, slot) in slots[1].iter().enumerate() {
                let mut weights: Vec<Vec<(usize, Upper)>> = vec![Vec::new(); count];
                for (k, t, row) in lambda.rows() {
                    let norm = vector_norm(&row[h * d..(h + 1) * d]);
                    if norm == Upper::ZERO {
                        continue;
                    }
                    weights[k].push((t, share * norm + tiny()));
                    let reference = vector_norm(part_of(m, t, h, d));
                    out.push(k, Term::Constant(norm * share * reference));
                }
                for (k, weights) in weights.into_iter().enumerate() {
                    out.push(k, Term::Linear { slot: *slot, weights });
                }
            }
            lambda = turned_back(&lambda, rotary, d, self.tokens)?;
        }
        match &self.norms {
            Some(norms) => Ok(norms[which].back(lambda, out)),
            None => Ok(lambda),
        }
    }
}

/// Without the tokens that matter least, whose whole change goes to the remainder: with few tokens in
/// sight, what follows costs far less.
fn pruned(lambda: Functionals, slot: usize, out: &mut Remainders) -> Functionals {
    const LEAST: f64 = 3e-4;
    let norms = lambda.norms();
    let n = lambda.tokens.len();
    let largest =
        |at: usize| (0..lambda.count).fold(Upper::ZERO, |m, k| m.max(norms[k * n + at])).to_f64();
    let all: Vec<f64> = (0..n).map(largest).collect();
    let least = LEAST * all.iter().fold(0.0, |m: f64, x| m.max(*x));
    if all.iter().all(|x| *x > least) {
        return lambda;
    }
    let mut own = lambda.clone();
    for at in (0..n).filter(|at| all[*at] > least) {
        (0..own.count).for_each(|k| own.row_mut(k, at).fill(0.0));
    }
    out.linear(slot, &own, |norm| norm);
    let mut kept = lambda;
    for at in (0..n).filter(|at| all[*at] <= least) {
        (0..kept.count).for_each(|k| kept.row_mut(k, at).fill(0.0));
    }
    kept.trimmed()
}

/// The functionals, turned by the opposite angles.
fn turned_back(
    lambda: &Functionals,
    rotary: &Rotary,
    d: usize,
    tokens: usize,
) -> Result<Functionals, Error> {
    let frequencies = Some(rotary.per_token(d).into_iter().map(|f| -f).collect());
    let back = Rotary { frequencies, ..rotary.clone() };
    let mut all = vec![0.0; lambda.count * tokens * lambda.width];
    for (k, t, row) in lambda.rows() {
        let first = (k * tokens + t) * lambda.width;
        all[first..first + lambda.width].copy_from_slice(row);
    }
    let shape = (lambda.count, tokens, lambda.width / d, d);
    let x = Tensor::from_vec(all, shape, &Device::Cpu)?;
    let all: Vec<f64> = ops::rotary(&x, &back)?.flatten_all()?.to_vec1()?;
    let mut out = lambda.clone();
    for k in 0..out.count {
        for at in 0..out.tokens.len() {
            let first = (k * tokens + out.tokens[at]) * out.width;
            let row = all[first..first + out.width].to_vec();
            out.row_mut(k, at).copy_from_slice(&row);
        }
    }
    Ok(out)
}

fn transpose(x: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| x[r * columns + c])).collect()
}
