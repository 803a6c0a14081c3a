//! What is known inside of a network around an input, held against the network at another: for tests.

use super::{Change, Distance, Point};
use crate::spectral::vector_norm;

impl Point {
    /// The largest share of a bound that another point within a change takes up inside, and where: tokens and
    /// elements that norms and elementwise nodes read, logits and probabilities of attention. Above 1, a bound
    /// is wrong. Shares of numbers that rounding may be all of do not count.
    #[doc(hidden)]
    pub fn share(&self, other: &Self, radius: f64, distance: Distance) -> (f64, String) {
        const ROUNDING: f64 = 1e-11;
        let mut worst = (0.0, String::new());
        let Some(deviations) = self.deviations(Change::Within(radius, distance), false) else {
            return worst;
        };
        let mut hold = |found: f64, bound: f64, slot: usize, what: &str| {
            let share = if found <= ROUNDING { 0.0 } else { found / (bound * (1.0 + 1e-9)) };
            if share > worst.0 {
                let name = &self.trace.names[slot];
                worst = (share, format!("{what} of {name}: {found} beside {bound}"));
            }
        };
        for (slot, _, tokens, width) in self.trace.curved() {
            let (Some(a), Some(b)) = (self.trace.read(slot), other.trace.read(slot)) else {
                continue;
            };
            for t in 0..tokens.min(b.rows) {
                let row = t * width..(t + 1) * width;
                let moved: Vec<f64> =
                    b.data[row.clone()].iter().zip(&a.data[row]).map(|(b, a)| b - a).collect();
                if let Some(spread) = &deviations.spreads[slot] {
                    hold(vector_norm(&moved).to_f64(), spread.each[t].to_f64(), slot, "a token");
                }
                let Some(each) = deviations.boxes(slot, t) else { continue };
                let pairs = each.len() < width;
                for (i, bound) in each.iter().enumerate() {
                    let apart = if pairs { moved[i] - moved[each.len() + i] } else { moved[i] };
                    hold(apart.abs(), *bound, slot, "an element");
                }
            }
        }
        let nodes = self.trace.attentions().into_iter().zip(other.trace.attentions());
        for (a, b) in nodes {
            for (h, t) in a.queries() {
                let Some((apart, moved)) = deviations.attention(a.slot, a.place(h, t)) else {
                    continue;
                };
                let (p, q) = (a.probabilities(h, t), b.probabilities(h, t));
                let sum: f64 = p.iter().zip(q).map(|(p, q)| (p - q).abs()).sum();
                hold(sum, moved, a.slot, "the probabilities");
                if a.plain() {
                    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
                    for j in (0..p.len()).filter(|j| a.sees(t, *j)) {
                        let change = b.logit(h, t, j) - a.logit(h, t, j);
                        (low, high) = (low.min(change), high.max(change));
                    }
                    hold(0.5 * (high - low), apart, a.slot, "the logits");
                }
            }
        }
        worst
    }
}
