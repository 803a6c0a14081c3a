//! The free positive numbers of the proof: any of them prove a bound, good ones a small bound.
//!
//! A search changes their logarithms; a certificate stores them, rounded to a few digits, and
//! whoever verifies it takes them as they are.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::approx::Approx;
use super::vectors::{along, dot};
use crate::spectral::top_right_singular_vector;

/// The multipliers of one step of the proof.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// The id of the node, and which of its steps.
    pub of: String,
    /// Positive numbers: for a sum, the relative weights of its terms; for an uncertain slope, what
    /// its square is weighed with.
    pub values: Vec<f64>,
    /// The values are over `4^exponent`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub exponent: i64,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// Logarithms of multipliers, by the step that uses them.
pub(super) type Logs = BTreeMap<String, Vec<f64>>;

/// Whether multipliers are searched for, or given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Search,
    Prove,
}

/// All multipliers of a walk, in the order of their use.
pub(super) struct Multipliers {
    pub(super) mode: Mode,
    /// What was used, or is to be used.
    pub(super) slots: Vec<Slot>,
    /// Logarithms by step, while searching; behind those of slopes is the logit of κ. A step may
    /// come and go, as a ball becomes better or worse than an ellipsoid.
    pub(super) logs: Logs,
    next: usize,
}

/// The multipliers of uncertain slopes.
pub(super) struct Slopes {
    pub(super) slot: usize,
    /// Over `4^−exponent`.
    pub(super) t: Vec<f64>,
    pub(super) exponent: i64,
    pub(super) search: Search,
}

/// What the derivative needs to know.
#[derive(Default)]
pub(super) struct Search {
    /// The top eigenvector of `Σ t_i u_iᵀ u_i`.
    pub(super) top: Vec<f64>,
    /// Its eigenvalue.
    pub(super) kappa: f64,
}

/// What κ is at most: the largest eigenvalue that is left below 1.
const LARGEST: f64 = 0.999;

impl Multipliers {
    /// Where a search starts.
    pub(super) fn search(logs: Logs) -> Self {
        Self { mode: Mode::Search, slots: Vec::new(), logs, next: 0 }
    }

    /// Those of a certificate.
    pub(super) fn given(slots: Vec<Slot>) -> Self {
        Self { mode: Mode::Prove, slots, logs: Logs::new(), next: 0 }
    }

    /// Whether every one was used.
    pub(super) fn finished(&self) -> bool {
        self.next == self.slots.len()
    }

    pub(super) fn zeros(&self) -> Vec<Vec<f64>> {
        self.slots.iter().map(|slot| vec![0.0; self.logs[&slot.of].len()]).collect()
    }

    /// The next given ones.
    fn take(&mut self, of: &str, count: usize) -> Option<(usize, Slot)> {
        let slot = self.slots.get(self.next)?.clone();
        let fine = |x: &f64| x.is_finite() && *x > 1e-100 && *x < 1e100;
        // Far beyond what any network needs, and far from the range of the exponents.
        let near = slot.exponent.unsigned_abs() < 1 << 32;
        if slot.of != of || slot.values.len() != count || !near || !slot.values.iter().all(fine) {
            return None;
        }
        self.next += 1;
        Some((self.next - 1, slot))
    }

    fn put(&mut self, of: &str, values: Vec<f64>, exponent: i64) -> usize {
        self.slots.push(Slot { of: of.into(), values, exponent });
        self.next += 1;
        self.next - 1
    }

    /// Relative weights of terms of these sizes (logarithms to base 2).
    pub(super) fn shares(&mut self, of: &str, sizes: &[f64]) -> Option<(usize, Vec<f64>)> {
        if self.mode == Mode::Prove {
            let (slot, found) = self.take(of, sizes.len())?;
            return (found.exponent == 0).then_some((slot, found.values));
        }
        let logs = self.logs.entry(of.to_string()).or_insert_with(|| {
            let top = sizes.iter().fold(f64::MIN, |m, x| m.max(*x));
            let start = |s: &f64| ((s - top) * std::f64::consts::LN_2).max(-12.0);
            sizes.iter().map(start).collect()
        });
        let top = logs.iter().fold(f64::MIN, |m, x| m.max(*x));
        logs.iter_mut().for_each(|l| *l = (*l - top).max(-40.0));
        let values: Vec<f64> = logs.iter().map(|l| digits(l.exp())).collect();
        Some((self.put(of, values.clone(), 0), values))
    }

    /// Those of uncertain slopes on the rows of `u`; `spread` repeats those that rows share.
    pub(super) fn slopes(
        &mut self,
        of: &str,
        count: usize,
        u: &Approx,
        spread: &dyn Fn(&[f64]) -> Vec<f64>,
    ) -> Option<Slopes> {
        if self.mode == Mode::Prove {
            let (slot, found) = self.take(of, count)?;
            let (t, exponent) = (found.values, found.exponent);
            return Some(Slopes { slot, t, exponent, search: Search::default() });
        }
        let exponent = -u.log_size().ceil() as i64;
        let logs = self.logs.entry(of.to_string()).or_insert_with(|| {
            let size = |row: &[f64]| -0.5 * dot(row, row).max(1e-24).ln();
            let rows: Vec<f64> = u.data.chunks(u.columns).map(size).collect();
            let mut logs = if rows.len() == count { rows } else { vec![0.0; count] };
            logs.push(0.0);
            logs
        });
        let mean = logs[..count].iter().sum::<f64>() / count as f64;
        logs[..count].iter_mut().for_each(|l| *l = (*l - mean).clamp(-30.0, 30.0));
        let kappa = LARGEST / (1.0 + (-logs[count]).exp());
        let t: Vec<f64> = logs[..count].iter().map(|l| l.exp()).collect();
        let root: Vec<f64> = spread(&t).iter().map(|t| t.sqrt()).collect();
        let v = u.diagonal_times(&Approx::exact(1, root.len(), root));
        let top = top_right_singular_vector(&v.matrix());
        let image = along(v.view(), &top);
        let lambda = dot(&image, &image);
        // `v` has its own exponent: λ is over 4^exponent of it.
        let shift = 2f64.powi((2 * (v.exponent + exponent)).clamp(-900, 900) as i32);
        let factor = kappa / (lambda * shift);
        let t: Vec<f64> = t.iter().map(|t| digits(t * factor)).collect();
        if !t.iter().all(|t| t.is_finite() && *t > 0.0) {
            return None;
        }
        let slot = self.put(of, t.clone(), exponent);
        Some(Slopes { slot, t, exponent, search: Search { top, kappa: kappa / LARGEST } })
    }
}

/// Rounded to five digits, so that a certificate stays readable.
fn digits(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let scale = 10f64.powi(4 - x.abs().log10().floor() as i32);
    (x * scale).round() / scale
}
