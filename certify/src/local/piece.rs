//! A node at one input: it carries deviations forward and linear functionals backward.

use std::sync::Arc;

use super::attention::Heads;
use super::functional::Functionals;
use super::gated::Gated;
use super::image::OnImage;
use super::maps::{Map, rounded, tiny};
use super::mean::Mean;
use super::moved::Moved;
use super::norm::{Normed, Unit};
use super::offsets::Offsets;
use super::pointwise::{Pointwise, Sorted};
use super::remainder::{Deviations, Remainders};
use super::spread::Spread;
use super::stretch::Stretch;
use super::tokenwise::{Apart, Reads};
use crate::Error;
use crate::spectral::{Matrix, gamma};
use crate::upper::{Upper, abs};

/// A node at one input.
pub(super) enum Piece {
    /// A node of whose changes something is known in general.
    Known {
        piece: Box<Piece>,
        reach: Upper,
        end: usize,
    },
    /// Nodes in turn.
    Sequence(Vec<Piece>),
    Stretch(Stretch),
    /// The sum of branches.
    Sum {
        branches: Vec<Piece>,
        slot: usize,
        outs: Vec<usize>,
        errors: Vec<Upper>,
    },
    /// `skip · x + branch · body(x)`
    Residual {
        skip: f64,
        branch: f64,
        body: Vec<Piece>,
        slot: usize,
        out: usize,
        errors: Vec<Upper>,
    },
    /// x and a constant.
    Shifted {
        errors: Vec<Upper>,
    },
    Scale {
        factor: f64,
        slot: usize,
        errors: Vec<Upper>,
    },
    Linear {
        map: Arc<Map>,
        slot: usize,
        errors: Vec<Upper>,
    },
    Pointwise(Pointwise),
    Sorted(Sorted),
    Normed(Normed),
    Unit(Unit),
    Gated(Box<Gated>),
    Attention(Box<Heads>),
    Image(Box<OnImage>),
    Offsets(Offsets),
    /// Elements that go elsewhere: of each output element, the token and the place that it is of.
    Moved(Moved),
    Mean(Mean),
}

/// What is known of the deviations at a place, from those in front of it.
pub(super) trait Known {
    /// Of the tokens that a norm or an elementwise node reads.
    fn tokens(&self, slot: usize, deviations: &Deviations) -> Option<Vec<Apart>>;

    /// Of the logits of attention, as [`super::logits`] has them.
    fn logits(&self, slot: usize, deviations: &Deviations) -> Option<Vec<[Upper; 2]>>;
}

/// Nothing.
pub(super) struct Unknown;

impl Known for Unknown {
    fn tokens(&self, _: usize, _: &Deviations) -> Option<Vec<Apart>> {
        None
    }

    fn logits(&self, _: usize, _: &Deviations) -> Option<Vec<[Upper; 2]>> {
        None
    }
}

/// The rounding of a sum of functionals.
pub(super) fn add_error(lambda: &Functionals, slot: usize, out: &mut Remainders) {
    out.linear(slot, lambda, |norm| gamma(4) * norm + tiny());
}

pub(super) fn grow(
    pieces: &[Piece],
    x: Spread,
    deviations: &mut Deviations,
    known: &dyn Known,
) -> Spread {
    pieces.iter().fold(x, |x, piece| piece.grow(x, deviations, known))
}

/// The deviations of what the norm of this place reads, with what is known of them.
fn limited(slot: usize, x: Spread, deviations: &mut Deviations, known: &dyn Known) -> Spread {
    let Some(known) = known.tokens(slot, deviations) else { return x };
    let each = x.each.iter().zip(&known).map(|(x, known)| x.min(known.whole)).collect();
    for (t, known) in known.into_iter().enumerate().filter(|(_, known)| !known.each.is_empty()) {
        deviations.bound(slot, t, known.each);
    }
    Spread::new(each, x.total)
}

pub(super) fn back(
    pieces: &[Piece],
    lambda: Functionals,
    out: &mut Remainders,
) -> Result<Functionals, Error> {
    pieces.iter().rev().try_fold(lambda, |lambda, piece| piece.back(lambda, out))
}

/// Backward from what the elementwise node, the norm or the attention of this place reads.
pub(super) fn back_from(
    pieces: &[Piece],
    slot: usize,
    lambda: Functionals,
    out: &mut Remainders,
) -> Result<Functionals, Error> {
    let Some(i) = pieces.iter().position(|piece| piece.holds(slot)) else { return Ok(lambda) };
    let lambda = match &pieces[i] {
        Piece::Known { piece, .. } => {
            back_from(std::slice::from_ref(piece.as_ref()), slot, lambda, out)?
        }
        Piece::Sequence(body)
        | Piece::Residual { body, .. }
        | Piece::Stretch(Stretch { body, .. }) => back_from(body, slot, lambda, out)?,
        Piece::Sum { branches, .. } => {
            let of = branches.iter().find(|branch| branch.holds(slot));
            back_from(of.map(std::slice::from_ref).unwrap_or_default(), slot, lambda, out)?
        }
        _ => lambda,
    };
    back(&pieces[..i], lambda, out)
}

impl Piece {
    /// The nodes that it is made of.
    fn body(&self) -> &[Self] {
        match self {
            Self::Known { piece, .. } => std::slice::from_ref(piece),
            Self::Sequence(body)
            | Self::Residual { body, .. }
            | Self::Stretch(Stretch { body, .. })
            | Self::Sum { branches: body, .. } => body,
            _ => &[],
        }
    }

    /// The elementwise nodes in it that have jumps of slopes.
    pub(super) fn bent(&self, out: &mut Vec<(usize, usize, bool)>) {
        match self {
            Self::Pointwise(piece) if piece.jumps() => {
                out.push((piece.slot, piece.size().1, false));
            }
            Self::Sorted(piece) => out.push((piece.slot, piece.size().1, true)),
            _ => self.body().iter().for_each(|piece| piece.bent(out)),
        }
    }

    /// What its norm or elementwise node of this place reads.
    pub(super) fn read(&self, slot: usize) -> Option<&Matrix> {
        match self {
            Self::Pointwise(piece) if piece.slot == slot => Some(piece.input()),
            Self::Sorted(piece) if piece.slot == slot => Some(piece.input()),
            Self::Normed(piece) if piece.slots[0] == slot => Some(piece.input()),
            _ => self.body().iter().find_map(|piece| piece.read(slot)),
        }
    }

    /// The attention in it.
    pub(super) fn attentions<'a>(&'a self, out: &mut Vec<&'a Heads>) {
        match self {
            Self::Attention(heads) => out.push(heads),
            _ => self.body().iter().for_each(|piece| piece.attentions(out)),
        }
    }

    /// The norms and elementwise nodes in it.
    pub(super) fn curved(&self, out: &mut Vec<(usize, Reads, usize, usize)>) {
        let (slot, reads, (tokens, width)) = match self {
            Self::Normed(piece) => (piece.slots[0], Reads::Whole, piece.size()),
            Self::Pointwise(piece) => (piece.slot, Reads::Elements, piece.size()),
            Self::Sorted(piece) => (piece.slot, Reads::Pairs, piece.size()),
            _ => return self.body().iter().for_each(|piece| piece.curved(out)),
        };
        out.push((slot, reads, tokens, width));
    }

    /// Whether each token behind it is of one token in front of it alone.
    pub(super) fn by_token(&self) -> bool {
        match self {
            Self::Known { piece, .. } => piece.by_token(),
            Self::Sequence(body)
            | Self::Residual { body, .. }
            | Self::Stretch(Stretch { body, .. })
            | Self::Sum { branches: body, .. } => body.iter().all(Self::by_token),
            Self::Shifted { .. }
            | Self::Scale { .. }
            | Self::Linear { .. }
            | Self::Pointwise(_)
            | Self::Sorted(_)
            | Self::Normed(_)
            | Self::Unit(_)
            | Self::Gated(_) => true,
            Self::Attention(_)
            | Self::Image(_)
            | Self::Offsets(_)
            | Self::Moved(_)
            | Self::Mean(_) => false,
        }
    }

    /// Whether it is a norm.
    pub(super) fn is_norm(&self) -> bool {
        match self {
            Self::Known { piece, .. } => piece.is_norm(),
            Self::Normed(_) | Self::Unit(_) => true,
            _ => false,
        }
    }

    /// Whether the product of the constants of its parts is far above its own, or those of a piece behind it
    /// with it.
    pub(super) fn bends(&self) -> bool {
        match self {
            Self::Known { piece, .. } => piece.bends(),
            Self::Residual { .. } | Self::Sum { .. } | Self::Gated(_) | Self::Attention(_) => true,
            _ => self.is_norm(),
        }
    }

    pub(super) fn has_norm_or_attention(&self) -> bool {
        let (mut curved, mut attentions) = (Vec::new(), Vec::new());
        self.curved(&mut curved);
        self.attentions(&mut attentions);
        !attentions.is_empty() || curved.iter().any(|(_, reads, ..)| *reads == Reads::Whole)
    }

    /// Whether it is attention, or has some in it, and no more than residuals around it.
    pub(super) fn attends(&self) -> bool {
        match self {
            Self::Known { piece, .. } => piece.attends(),
            Self::Sequence(body)
            | Self::Residual { body, .. }
            | Self::Stretch(Stretch { body, .. }) => {
                body.iter().any(Self::attends)
                    && body.iter().all(|piece| piece.attends() || piece.by_token())
            }
            Self::Attention(_) => true,
            _ => false,
        }
    }

    /// The multiplications of a functional of `read` tokens behind it that goes back through it, where there are so
    /// many `tokens`; `read` becomes how many it reads in front.
    pub(super) fn work(&self, tokens: usize, read: &mut usize) -> usize {
        let maps = |maps: &[&Arc<Map>]| maps.iter().map(|map| map.w.data.len()).sum::<usize>();
        match self {
            Self::Known { piece, .. } => piece.work(tokens, read),
            Self::Sequence(body)
            | Self::Residual { body, .. }
            | Self::Stretch(Stretch { body, .. }) => {
                let through = |sum: usize, piece: &Self| sum + piece.work(tokens, read);
                body.iter().rev().fold(0, through)
            }
            Self::Sum { branches, .. } => {
                let (mut all, before) = (0, *read);
                for branch in branches {
                    let mut own = before;
                    all += branch.work(tokens, &mut own);
                    *read = own.max(*read);
                }
                all
            }
            Self::Linear { map, .. } => *read * maps(&[map]),
            Self::Gated(piece) => *read * maps(&[&piece.gate, &piece.up, &piece.down]),
            Self::Attention(heads) => {
                let [q, k, v, o] = heads.maps();
                let own = *read * maps(&[q, o]);
                *read = tokens;
                own + tokens * maps(&[k, v])
            }
            _ => 0,
        }
    }

    /// The place of a norm that reads its input as it is.
    fn starts_with_norm(&self) -> Option<usize> {
        match self {
            Self::Known { piece, .. } => piece.starts_with_norm(),
            Self::Sequence(body) | Self::Stretch(Stretch { body, .. }) => {
                body.first()?.starts_with_norm()
            }
            Self::Normed(piece) => Some(piece.slots[0]),
            _ => None,
        }
    }

    /// Whether the elementwise node, the norm or the attention of this place is it or in it.
    fn holds(&self, slot: usize) -> bool {
        let (mut curved, mut attentions) = (Vec::new(), Vec::new());
        self.curved(&mut curved);
        self.attentions(&mut attentions);
        curved.iter().any(|(own, ..)| *own == slot)
            || attentions.iter().any(|heads| heads.slot == slot)
    }

    /// From the deviations of its input to those of its output.
    fn grow(&self, x: Spread, deviations: &mut Deviations, known: &dyn Known) -> Spread {
        match self {
            Self::Known { piece, reach, end } => {
                let y = piece.grow(x, deviations, known);
                let still = deviations.still.clone();
                let still = still.as_ref().and_then(|still| still.ends[*end].as_ref());
                let y = deviations.limited(y, *reach, still);
                deviations.ends[*end] = Some(y.clone());
                y
            }
            Self::Sequence(body) => grow(body, x, deviations, known),
            Self::Stretch(stretch) => stretch
                .grow(x, deviations, &mut |piece, x, deviations| piece.grow(x, deviations, known)),
            Self::Sum { branches, slot, outs, errors } => {
                deviations.spreads[*slot] = Some(x.clone());
                let mut sum: Option<Spread> = None;
                for (branch, out) in branches.iter().zip(outs) {
                    let y = branch.grow(x.clone(), deviations, known);
                    deviations.spreads[*out] = Some(y.clone());
                    let none = vec![Upper::ZERO; y.each.len()];
                    sum = Some(match sum {
                        Some(sum) => sum.blend(Upper::ONE, &y, Upper::ONE, &none),
                        None => y,
                    });
                }
                sum.unwrap_or(x).through(Upper::ONE, errors)
            }
            Self::Residual { skip, branch, body, slot, out, errors } => {
                // A norm in front of the body reads what is passed by as well.
                let x = match body.first().and_then(Self::starts_with_norm) {
                    Some(norm) => {
                        let x = limited(norm, x, deviations, known);
                        deviations.spreads[norm] = Some(x.clone());
                        x
                    }
                    None => x,
                };
                deviations.spreads[*slot] = Some(x.clone());
                let y = grow(body, x.clone(), deviations, known);
                deviations.spreads[*out] = Some(y.clone());
                x.blend(abs(*skip), &y, abs(*branch), errors)
            }
            Self::Shifted { errors } => x.through(Upper::ONE, errors),
            Self::Scale { factor, slot, errors } => {
                deviations.spreads[*slot] = Some(x.clone());
                x.through(abs(*factor), errors)
            }
            Self::Linear { map, slot, errors } => {
                deviations.spreads[*slot] = Some(x.clone());
                map.grow(&x, errors)
            }
            Self::Pointwise(piece) => {
                let x = limited(piece.slot, x, deviations, known);
                deviations.spreads[piece.slot] = Some(x.clone());
                piece.grow(&x)
            }
            Self::Sorted(piece) => {
                let x = limited(piece.slot, x, deviations, known);
                deviations.spreads[piece.slot] = Some(x.clone());
                x
            }
            Self::Normed(piece) => {
                let slot = piece.slots[0];
                let x = match deviations.spreads[slot] {
                    // It is what the residual around it reads.
                    Some(_) => x,
                    None => limited(slot, x, deviations, known),
                };
                deviations.spreads[slot] = Some(x.clone());
                piece.grow(0, &x)
            }
            Self::Unit(piece) => {
                deviations.spreads[piece.slot] = Some(x.clone());
                piece.grow(&x)
            }
            Self::Gated(piece) => piece.grow(x, deviations),
            Self::Attention(heads) => heads.grow(&x, deviations, known),
            Self::Image(piece) => {
                deviations.spreads[piece.slot] = Some(x.clone());
                piece.grow(&x)
            }
            Self::Offsets(piece) => piece.grow(x, deviations),
            Self::Moved(moved) => moved.grow(&x),
            Self::Mean(piece) => piece.grow(x, deviations),
        }
    }

    /// From functionals of its output to those of its input.
    fn back(&self, lambda: Functionals, out: &mut Remainders) -> Result<Functionals, Error> {
        Ok(match self {
            Self::Known { piece, .. } => piece.back(lambda, out)?,
            Self::Sequence(body) | Self::Stretch(Stretch { body, .. }) => back(body, lambda, out)?,
            Self::Sum { branches, slot, outs, errors } => {
                rounded(&lambda, errors, out);
                let mut sum: Option<Functionals> = None;
                for (branch, _) in branches.iter().zip(outs) {
                    let x = branch.back(lambda.clone(), out)?;
                    add_error(&x, *slot, out);
                    sum = Some(match sum {
                        Some(sum) => {
                            add_error(&sum, *slot, out);
                            sum.plus(&x)
                        }
                        None => x,
                    });
                }
                sum.unwrap_or(lambda)
            }
            Self::Residual { skip, branch, body, slot, out: end, errors } => {
                rounded(&lambda, errors, out);
                let share = gamma(2) * abs(*branch);
                out.linear(*end, &lambda, |norm| share * norm + tiny());
                let inner = back(body, lambda.clone().scaled(*branch), out)?;
                let outer = lambda.scaled(*skip);
                add_error(&inner, *slot, out);
                add_error(&outer, *slot, out);
                outer.plus(&inner)
            }
            Self::Shifted { errors } => {
                rounded(&lambda, errors, out);
                lambda
            }
            Self::Scale { factor, slot, errors } => {
                rounded(&lambda, errors, out);
                let share = gamma(2) * abs(*factor);
                out.linear(*slot, &lambda, |norm| share * norm + tiny());
                lambda.scaled(*factor)
            }
            Self::Linear { map, slot, errors } => {
                rounded(&lambda, errors, out);
                map.back(&lambda, *slot, out)?
            }
            Self::Pointwise(piece) => {
                rounded(&lambda, &piece.errors, out);
                piece.back(lambda, out)
            }
            Self::Sorted(piece) => piece.back(lambda, out),
            Self::Normed(piece) => piece.back(lambda, out),
            Self::Unit(piece) => piece.back(lambda, out),
            Self::Gated(piece) => piece.back(&lambda, out)?,
            Self::Attention(heads) => heads.back(lambda, out)?,
            Self::Image(piece) => piece.back(&lambda, out)?,
            Self::Offsets(piece) => piece.back(&lambda, out)?,
            Self::Moved(moved) => moved.back(&lambda),
            Self::Mean(piece) => piece.back(&lambda, out),
        })
    }
}
