//! How far tokens can be from their references behind a few nodes, by the derivative of all of them together.
//!
//! A product of the constants of a norm, of a map to a hidden layer and of one back is far above what they
//! do to any token, and it grows with depth. With J the derivative of a token behind these nodes at the reference,
//! by the same token in front of them, and K that by all others, `‖Δ'‖ ≤ ‖J‖ ‖Δ‖ + ‖K‖ √Σ ‖Δ_s‖²` and the norm
//! of what all nodes leave out, as in [`super::tokenwise`]; from the input of the whole network on, that
//! would be too much work for long inputs.

use rayon::prelude::*;

use super::functional::Functionals;
use super::piece::{Piece, back};
use super::remainder::{Deviations, Remainders};
use super::spread::{Spread, root_of_squares};
use crate::Error;
use crate::spectral::{Matrix, quick_norm};
use crate::upper::Upper;

/// The most multiplications for one place: more than that takes seconds.
pub(super) const MAX_WORK: f64 = 1e11;

/// The most for more nodes than that: as many stretches in front as this allows are taken with it.
const MORE: f64 = 1.2e10;

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
    known: Vec<Known>,
}

/// What is known behind some nodes of a stretch.
struct Known {
    /// How many.
    end: usize,
    /// Where the deviations are kept that it is known by: those in front of this stretch or of an earlier one.
    slot: usize,
    tokens: Vec<One>,
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
    /// From a piece to the next that mixes tokens: all such pieces in turn become one, and so does attention.
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
            Self::add(&mut out, std::mem::take(&mut own), slot)?;
            Self::add(&mut out, vec![step], slot)?;
        }
        Self::add(&mut out, own, slot)?;
        Ok(out)
    }

    /// Adds these: as a stretch, where that is worth it and not too much work.
    fn add(
        out: &mut Vec<Piece>,
        steps: Vec<Step>,
        slot: &mut dyn FnMut() -> usize,
    ) -> Result<(), Error> {
        let sizes: Vec<[usize; 2]> = steps.iter().map(|s| [s.tokens, s.width]).collect();
        let body: Vec<Piece> = steps.into_iter().map(|step| step.piece).collect();
        // In front of each norm but a first one, and at the end.
        let worth = |end: &usize| {
            let joint = *end > 1 || body[0].attends();
            let bends = body[..*end].iter().any(Piece::bends);
            body.get(*end).is_none_or(Piece::is_norm) && joint && bends
        };
        let ends: Vec<usize> = (1..=body.len()).filter(worth).collect();
        if ends.is_empty() {
            out.extend(body);
            return Ok(());
        }
        let own = slot();
        let mut known = Vec::new();
        for end in ends {
            let [tokens, width] = sizes[end - 1];
            if let Some((slot, first)) = reach(out, &body[..end], own, [tokens, width]) {
                let one = |t: usize| {
                    let lambda = Functionals::elements(t, width);
                    let mut remainders = Remainders::of_vector(width);
                    let lambda = back(&body[..end], lambda, &mut remainders)?;
                    let lambda = back(&out[first..], lambda, &mut remainders)?;
                    Ok(One::new(t, &lambda, remainders))
                };
                let tokens = (0..tokens).into_par_iter().map(one).collect::<Result<_, Error>>()?;
                known.push(Known { end, slot, tokens });
            }
        }
        out.push(Piece::Stretch(Self { body, slot: own, known }));
        Ok(())
    }

    /// From the deviations of its input to those of its output; `grow` is that of a piece.
    pub(super) fn grow(
        &self,
        x: Spread,
        deviations: &mut Deviations,
        grow: &mut dyn FnMut(&Piece, Spread, &mut Deviations) -> Spread,
    ) -> Spread {
        deviations.spreads[self.slot] = Some(x.clone());
        let mut y = x;
        for (i, piece) in self.body.iter().enumerate() {
            y = grow(piece, y, deviations);
            if let Some(known) = self.known.iter().find(|known| known.end == i + 1) {
                y = known.limited(y, deviations);
            }
        }
        y
    }
}

impl Known {
    /// The deviations y, with what is known of them.
    fn limited(&self, y: Spread, deviations: &Deviations) -> Spread {
        let Some(x) = &deviations.spreads[self.slot] else { return y };
        let at = |(t, one): (usize, &One)| one.at(t, x, deviations);
        let own: Vec<Upper> = self.tokens.par_iter().enumerate().map(at).collect();
        let each = y.each.iter().zip(own).map(|(y, own)| y.min(own)).collect();
        // Where each reads itself alone, all together are no worse than the worst.
        if !self.tokens.iter().all(|one| one.others.is_empty()) {
            return Spread::new(each, y.total);
        }
        let largest = self.tokens.iter().fold(Upper::ZERO, |m, one| m.max(one.own));
        let rest = |one: &One| one.remainders.of_whole(deviations);
        let rests: Vec<Upper> = self.tokens.iter().map(rest).collect();
        Spread::new(each, y.total.min(largest * x.total + root_of_squares(&rests)))
    }
}

/// How far back derivatives go that begin behind `body`: the slot of the stretch in front of which they end, and
/// its place in `out`; none if `body` alone, whose slot is `own`, is too much work.
fn reach(
    out: &[Piece],
    body: &[Piece],
    own: usize,
    [tokens, width]: [usize; 2],
) -> Option<(usize, usize)> {
    let each = tokens as f64 * width as f64;
    let mut read = 1;
    // The norms of derivatives.
    let mut work = each * 3.0 * (width as f64).powi(2);
    let mut through = |piece: &Piece| {
        work += each * piece.work(tokens, &mut read) as f64;
        work
    };
    let alone = body.iter().rev().map(&mut through).last();
    if alone.is_none_or(|alone| alone > MAX_WORK) {
        return None;
    }
    let mut found = (own, out.len());
    for (i, piece) in out.iter().enumerate().rev() {
        let same = piece.by_token() || piece.attends();
        if !same || through(piece) > MORE {
            break;
        }
        if let Piece::Stretch(stretch) = piece {
            found = (stretch.slot, i);
        }
    }
    Some(found)
}
