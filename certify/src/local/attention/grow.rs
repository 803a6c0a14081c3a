//! How far the output of attention can be where its input deviates.

use super::{Heads, middle, part_of};
use crate::local::curvature::Curvature;
use crate::local::piece::Known;
use crate::local::remainder::Deviations;
use crate::local::softmax::{NEGLIGIBLE, Reach, SOFTMAX, exp};
use crate::local::spread::{Spread, root_of_squares};
use crate::spectral::{gamma, vector_norm};
use crate::upper::{Upper, abs, count};

impl Heads {
    /// Queries, keys or values of each head before norms and positions.
    fn mapped(
        &self,
        which: usize,
        x: &Spread,
        slots: &[usize],
        deviations: &Deviations,
    ) -> Vec<Spread> {
        let parts = self.blocks[which].iter().zip(&self.reach[which]).zip(slots);
        let part = |((norm, reach), slot): ((&Upper, &Upper), &usize)| {
            let spread = x.through(*norm, &self.errors[which]);
            let still = deviations.still.as_ref().and_then(|still| still.spreads[*slot].as_ref());
            deviations.limited(spread, *reach, still)
        };
        parts.map(part).collect()
    }

    /// Queries or keys of each head, at given deviations of the node's input.
    fn projected(
        &self,
        which: usize,
        slots: &[Vec<usize>; 2],
        x: &Spread,
        deviations: &mut Deviations,
    ) -> Vec<Spread> {
        let raw = self.mapped(which, x, &slots[0], deviations);
        for (slot, spread) in slots[0].iter().zip(&raw) {
            deviations.spreads[*slot] = Some(spread.clone());
        }
        let mut all = raw;
        if let Some(norms) = &self.norms {
            let norm = &norms[which];
            if norm.groups == 1 {
                let whole = x.through(self.maps[which].norm, &self.errors[which]);
                deviations.spreads[norm.slots[0]] = Some(whole.clone());
                let normed = norm.grow(0, &whole);
                all = vec![normed; self.blocks[which].len()];
            } else {
                all = all.iter().enumerate().map(|(h, x)| norm.grow(h, x)).collect();
            }
            for (slot, spread) in slots[1].iter().zip(&all) {
                deviations.spreads[*slot] = Some(spread.clone());
            }
        }
        if self.config.rotary.is_some() {
            // Turning keeps norms; what it rounds is a few units of the position.
            let d = self.config.head_dim;
            let m = if which == 0 { &self.query } else { &self.key };
            for (h, spread) in all.iter_mut().enumerate() {
                let errors: Vec<Upper> = (0..self.tokens)
                    .map(|t| self.turning() * vector_norm(part_of(m, t, h, d)))
                    .collect();
                *spread = spread.through(Upper::ONE, &errors);
                deviations.spreads[slots[1][h]] = Some(spread.clone());
            }
        }
        all
    }

    pub(in crate::local) fn grow(
        &self,
        x: &Spread,
        deviations: &mut Deviations,
        known: &dyn Known,
    ) -> Spread {
        let (a, n) = (&self.config, self.tokens);
        let d = a.head_dim;
        deviations.spreads[self.slot] = Some(x.clone());
        let query = self.projected(0, &self.query_slots, x, deviations);
        let key = self.projected(1, &self.key_slots, x, deviations);
        let value = self.mapped(2, x, &self.value_slots, deviations);
        for (slot, spread) in self.value_slots.iter().zip(&value) {
            deviations.spreads[*slot] = Some(spread.clone());
        }
        let logits = known.logits(self.slot, deviations);
        let scale = abs(a.logit_scale);
        let beta = match a.logit_cap {
            Some(cap) => Upper::from_f64(0.5 * Curvature::soft_cap(cap).most()),
            None => Upper::ZERO,
        };
        let empty = || Vec::with_capacity(a.heads * n);
        let mut reach = Reach {
            scale,
            beta,
            off: empty(),
            curved: empty(),
            moved: empty(),
            keys: empty(),
            values: empty(),
            logit: empty(),
            query: empty(),
            key: empty(),
            value: empty(),
        };
        // What each head adds to the output: its mean of changes, and its change of means.
        let (mut mixed, mut direct) = (vec![Vec::new(); n], vec![Upper::ZERO; n]);
        let (mut mixed_total, mut direct_total) = (Upper::ZERO, Upper::ZERO);
        for (h, query) in query.iter().enumerate() {
            let g = self.group(h);
            let centre = if a.logit_cap.is_some() { vec![0.0; d] } else { middle(&self.key, g, d) };
            let apart: Vec<Upper> = (0..n)
                .map(|j| {
                    let row = part_of(&self.key, j, g, d);
                    let gap: Vec<f64> = row.iter().zip(&centre).map(|(k, c)| k - c).collect();
                    vector_norm(&gap) + gamma(4) * vector_norm(row)
                })
                .collect();
            let mut column = vec![Upper::ZERO; n];
            let mut covariances = Vec::new();
            for t in 0..n {
                let seen = || (0..n).filter(|j| self.sees(t, *j));
                let most =
                    |f: &dyn Fn(usize) -> Upper| seen().fold(Upper::ZERO, |m, j| m.max(f(j)));
                let q = vector_norm(part_of(&self.query, t, h, d));
                let (dq, dk, dv) =
                    (query.each[t], most(&|j| key[g].each[j]), most(&|j| value[g].each[j]));
                let error = self.logit_errors[h * n + t];
                let both = (q + dq) * dk;
                let mut w = scale * (dq * most(&|j| apart[j]) + both) + error;
                let far = most(&|j| vector_norm(part_of(&self.key, j, g, d)));
                let logit = scale * (dq * far + both) + error;
                // What logits are apart, to first order; products of changes and rounding come to it.
                let own = logits.as_ref().map(|all| all[h * n + t]);
                let beside = scale * dq * dk + error + gamma(4) * logit;
                if let Some([most, _]) = own {
                    w = w.min(most + beside + beside);
                }
                let p = self.probabilities(h, t);
                let (favourite, _) = p
                    .iter()
                    .enumerate()
                    .fold((0, 0.0), |m, (j, p)| if *p > m.1 { (j, *p) } else { m });
                let others = seen().filter(|j| *j != favourite);
                let rest: f64 = others.clone().map(|j| p[j]).sum();
                let rest = Upper::from_f64(rest)
                    * (Upper::ONE + gamma(n + 64) + Upper::from_f64(SOFTMAX))
                    + count(n) * Upper::from_f64(NEGLIGIBLE);
                let kept = (1.0 - rest.to_f64()).next_down();
                let quarter = Upper::from_f64(0.25);
                let squared = exp(w + w);
                let off = (rest * squared).div_up(kept).min(quarter);
                let two = Upper::from_f64(2.0);
                // The variance of logits by that of keys, and as all keys together move by no more than
                // so much: `Σ p_j ‖Δk_j‖² ≤ max p Σ ‖Δk_j‖²`.
                let root = self.likeliest(h, t).sqrt();
                let keys = dk.min(root * key[g].total);
                let mut varied =
                    scale * (dq * self.spreads[1][h * n + t] + (q + dq) * keys) + error;
                // What logits are apart from their mean on the way.
                let mut far = w + w;
                if let Some([most, own]) = own {
                    let computed =
                        own * (Upper::ONE + Upper::from_f64(2.0 * SOFTMAX) + gamma(2 * n + 32));
                    let tail = (count(n) * Upper::from_f64(NEGLIGIBLE)).sqrt() * most;
                    varied = varied.min(computed + tail + beside);
                    // The mean of the reference moves by the variance on the way.
                    let off = Upper::from_f64(4.0 * SOFTMAX) + gamma(n + 8);
                    let most = most + beside + beside + off * (most + logit);
                    far = far.min(most + squared * varied * varied);
                }
                // Of the way, ∫ e^(wτ), ∫ e^(2wτ) and 2 ∫ (1 − τ) e^(2wτ).
                let factor = exp(w);
                let half = Upper::from_f64(0.5);
                let once = Upper::ONE + half * w * factor;
                let twice = Upper::ONE + w * squared;
                let curve = Upper::ONE + (two * w * squared).div_up(3.0);
                let deviation = (two * w * off.sqrt()).min(w);
                let moved = (two * two * w * off).min(deviation).min(varied * once).min(two);
                let curved = half * far * (factor * deviation).min(varied * curve);
                // The variance of values under the probabilities, and all of it on the way.
                let sigma = self.spreads[0][h * n + t];
                let covariance = (sigma * (factor * deviation).min(varied * twice))
                    .min(moved * self.widest(g, t));
                let values = root * value[g].total * (varied * twice);
                let mean = seen().fold(Upper::ZERO, |sum, j| {
                    let off = Upper::from_f64(2.0 * SOFTMAX) + gamma(2 * n + 32);
                    let p =
                        Upper::from_f64(p[j]) * (Upper::ONE + off) + Upper::from_f64(NEGLIGIBLE);
                    column[j] = column[j] + p * squared;
                    sum + p * x.each[j]
                });
                let nearest = most(&|j| x.each[j]);
                let mean = (mean + half * moved * nearest).min(nearest);
                let moves = self.blocks[2][g] * mean + most(&|j| self.errors[2][j]);
                let rounding = self.mixed_errors[h * n + t];
                mixed[t].push(moves.min(dv) + covariance + rounding);
                let beside = covariance + rounding + most(&|j| self.errors[2][j]);
                direct[t] = direct[t] + self.blocks[4][h] * mean + self.blocks[3][h] * beside;
                covariances.push(beside);
                reach.off.push(w);
                reach.curved.push(curved);
                reach.moved.push(moved);
                reach.keys.push(keys);
                reach.values.push(values);
                reach.logit.push(logit);
                reach.query.push(dq);
                reach.key.push(dk);
                reach.value.push(dv);
            }
            // ‖P‖₂ ≤ √(largest row sum · largest column sum).
            let columns = column.iter().fold(Upper::ZERO, |m, c| m.max(*c)).sqrt();
            let beside = root_of_squares(&covariances);
            let own = self.blocks[2][g] * columns * x.total + beside;
            mixed_total = mixed_total + own * own;
            direct_total =
                direct_total + self.blocks[4][h] * columns * x.total + self.blocks[3][h] * beside;
        }
        deviations.reaches[self.slot] = Some(reach);
        let each: Vec<Upper> = mixed.iter().map(|heads| root_of_squares(heads)).collect();
        let mixed = Spread::new(each, mixed_total.sqrt());
        deviations.spreads[self.mixed_slot] = Some(mixed.clone());
        let norm = self.maps[3].norm;
        let joint = mixed.through(norm, &self.errors[3]);
        let each = joint.each.iter().zip(&direct).zip(&self.errors[3]);
        let each = each.map(|((j, d), e)| j.min(*d + *e)).collect();
        let total = joint.total.min(direct_total + root_of_squares(&self.errors[3]));
        let out = Spread::new(each, total);
        deviations.spreads[self.projected_slot] = Some(out.clone());
        out.through(abs(a.output_scale), &self.projected)
    }
}
