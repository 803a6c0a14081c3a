//! How far tokens can be from their references behind a few nodes, by the derivative of all of them together.
//!
//! A product of the constants of a norm, of a map to a hidden layer and of one back is far above what they
//! do to any token, and it grows with depth. With J the derivative of a token behind these nodes at the reference,
//! by the same token in front of them, and K that by all others, `‖Δ'‖ ≤ ‖J‖ ‖Δ‖ + ‖K‖ √Σ ‖Δ_s‖²` and the norm
//! of what all nodes leave out, as in [`super::tokenwise`]; from the input of the whole network on, that
//! would be too much work for long inputs.

use rayon::prelude::*;

use super::functional::Functionals;
use super::remainder::{Deviations, Remainders};
use super::spread::{Spread, root_of_squares};
use super::trace::{Piece, back};
use crate::Error;
use crate::spectral::{Matrix, quick_norm};
use crate::upper::Upper;

/// The most multiplications for one place: more than that takes seconds.
pub(super) const MOST: f64 = 1e11;

/// A piece, and the tokens and elements of each behind it.
pub(super) struct Step {
    pub(super) piece: Piece,
    pub(super) tokens: usize,
    pub(super) width: usize,
}

/// Nodes in turn: either each reads one token alone, or it is a single one that mixes them.
pub(super) struct Stretch {
    pub(super) body: Vec<Piece>,
    /// Where the deviations in front of them are kept.
    slot: usize,
    /// What is known behind some of them: behind which, and of each token.
    known: Vec<(usize, Vec<One>)>,
}

/// Of a token.
struct One {
    /// ‖J‖
    own: Upper,
    /// The others that it reads, and ‖K‖.
    others: Vec<usize>,
    joint: Upper,
    remainders: Remainders,
}

impl One {
    /// Of token t.
    fn new(t: usize, lambda: &Functionals, remainders: Remainders) -> Self {
        let (mut own, mut others, mut rows) = (Upper::ZERO, Vec::new(), Vec::new());
        for (at, s) in lambda.tokens.iter().enumerate() {
            if *s == t {
                own = quick_norm(&lambda.of_token(at));
            } else {
                others.push(*s);
                rows.push(at);
            }
        }
        let row = |k: usize| rows.iter().flat_map(move |at| lambda.row(k, *at).iter().copied());
        let data = (0..lambda.count).flat_map(row).collect();
        let (rows, columns) = (lambda.count, others.len() * lambda.width);
        let joint = quick_norm(&Matrix { rows, columns, data });
        Self { own, others, joint, remainders }
    }

    /// A bound on the deviation of token t, from those in front.
    fn at(&self, t: usize, x: &Spread, deviations: &Deviations) -> Upper {
        let others: Vec<Upper> = self.others.iter().map(|s| x.each[*s]).collect();
        let others = self.joint * root_of_squares(&others).min(x.total);
        // It may be that no token in front is this one.
        let own = x.each.get(t).copied().unwrap_or(Upper::ZERO);
        self.own * own + others + self.remainders.of_whole(deviations)
    }
}

impl Stretch {
    /// From a piece to the next that mixes tokens: all such pieces in turn become one.
    ///
    /// # Errors
    /// Those of products.
    pub(super) fn all(
        steps: Vec<Step>,
        slot: &mut dyn FnMut() -> usize,
    ) -> Result<Vec<Piece>, Error> {
        let (mut out, mut own): (Vec<Piece>, Vec<Step>) = (Vec::new(), Vec::new());
        for step in steps {
            if step.piece.by_token() {
                own.push(step);
                continue;
            }
            out.extend(Self::of(std::mem::take(&mut own), slot)?);
            out.extend(Self::of(vec![step], slot)?);
        }
        out.extend(Self::of(own, slot)?);
        Ok(out)
    }

    /// One, where that is worth it and not too much work.
    fn of(steps: Vec<Step>, slot: &mut dyn FnMut() -> usize) -> Result<Vec<Piece>, Error> {
        let sizes: Vec<[usize; 2]> = steps.iter().map(|s| [s.tokens, s.width]).collect();
        let body: Vec<Piece> = steps.into_iter().map(|step| step.piece).collect();
        // In front of each norm but a first one, and at the end.
        let worth = |end: &usize| {
            let joint = *end > 1 || body[0].attends();
            let bends = body[..*end].iter().any(Piece::bends);
            body.get(*end).is_none_or(Piece::is_norm) && joint && bends
        };
        let mut known = Vec::new();
        for end in (1..=body.len()).filter(worth) {
            let [tokens, width] = sizes[end - 1];
            let body = &body[..end];
            let work: usize = body.iter().map(|piece| piece.work(tokens)).sum();
            if tokens as f64 * width as f64 * work as f64 > MOST {
                continue;
            }
            let one = |t: usize| {
                let mut data = vec![0.0; width * width];
                (0..width).for_each(|i| data[i * width + i] = 1.0);
                let lambda = Functionals { count: width, tokens: vec![t], width, data };
                let mut remainders = Remainders::of_vector(width);
                let lambda = back(body, lambda, &mut remainders)?;
                Ok(One::new(t, &lambda, remainders))
            };
            known.push((end, (0..tokens).into_par_iter().map(one).collect::<Result<_, Error>>()?));
        }
        if known.is_empty() {
            return Ok(body);
        }
        Ok(vec![Piece::Stretch(Self { body, slot: slot(), known })])
    }

    /// From the deviations of its input to those of its output; `grow` is that of a piece.
    pub(super) fn grow(
        &self,
        x: Spread,
        deviations: &mut Deviations,
        grow: &mut dyn FnMut(&Piece, Spread, &mut Deviations) -> Spread,
    ) -> Spread {
        deviations.spreads[self.slot] = Some(x.clone());
        let mut y = x.clone();
        for (i, piece) in self.body.iter().enumerate() {
            y = grow(piece, y, deviations);
            if let Some((_, known)) = self.known.iter().find(|(end, _)| *end == i + 1) {
                y = limited(&x, y, known, deviations);
            }
        }
        y
    }
}

/// The deviations y behind those x, with what is known of them.
fn limited(x: &Spread, y: Spread, known: &[One], deviations: &Deviations) -> Spread {
    let at = |(t, one): (usize, &One)| one.at(t, x, deviations);
    let own: Vec<Upper> = known.par_iter().enumerate().map(at).collect();
    let each = y.each.iter().zip(own).map(|(y, own)| y.min(own)).collect();
    // Where each reads itself alone, all together are no worse than the worst.
    if !known.iter().all(|one| one.others.is_empty()) {
        return Spread::new(each, y.total);
    }
    let largest = known.iter().fold(Upper::ZERO, |m, one| m.max(one.own));
    let rests: Vec<Upper> = known.iter().map(|one| one.remainders.of_whole(deviations)).collect();
    Spread::new(each, y.total.min(largest * x.total + root_of_squares(&rests)))
}
