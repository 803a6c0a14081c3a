//! Certificates around one input: how far it may move before a decision can change, and how far each
//! output can move.
//!
//! The network is run once, and its computed values are the reference. Behind a change of the input of
//! size r, every node's input deviates from its reference by at most D, which is carried forward node
//! by node (`grow`). A linear functional of the output is carried backward (`back`): what it is of the
//! node's input to first order, and a remainder of second order in D. Then
//!
//! ```text
//! |f(x + δ) − f(x) − λ·δ| ≤ R(r)   for every δ of size at most r,
//! ```
//!
//! so a margin m survives while `m > ‖λ‖ r + R(r)`, in the dual norm. Rounding is a part of D and of R:
//! the reference is what was computed, so each node's rounding is one more deviation, and λ may be
//! computed in any way, as its error times D is added. The proofs are in `docs/mathematics.md`, the
//! rule of each node is beside its code: elementwise functions in `curvature` and `pointwise`, norms in
//! `norm`, softmax in `attention`.

mod attention;
mod curvature;
mod functional;
mod gated;
mod image;
mod inside;
mod logits;
mod maps;
mod mean;
mod moved;
mod norm;
mod offsets;
mod piece;
mod pointwise;
mod remainder;
mod replaced;
mod softmax;
mod spread;
mod stretch;
mod substitutions;
mod survey;
mod tokenwise;
mod trace;

pub use replaced::Replacements;
pub use substitutions::{
    Allowed, Proof, Replaced, Substituted, Substitutions, Trials, substitutions,
};
pub use survey::{Lost, Outputs, Radius, Settings, Survey, about, survey, verify};

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::Model;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::bound::WeightNorms;
use crate::ellipsoid::{self, Changes, EllipsoidBound};
use crate::robust::largest;
use crate::spectral::{gamma, vector_norm};
use crate::upper::{Upper, count};
use functional::Functionals;
use logits::Logits;
use maps::Maps;
use piece::Known;
use remainder::{Deviations, Remainders, Side};
use spread::Spread;
use tokenwise::{Apart, Tokenwise};
use trace::Trace;

/// How the size of a change of the input is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// The largest ℓ2 norm of the change of a token: every token may move by that much.
    Token,
    /// The ℓ2 norm of the change of all tokens together, of an image or of a vector.
    L2,
    /// The largest change of an element.
    Linf,
}

/// A set of changes of an input.
#[derive(Clone, Copy)]
enum Change<'a> {
    /// All of at most this size.
    Within(f64, Distance),
    /// Some tokens become others.
    Replaced(&'a Replacements),
}

/// A network around whose inputs something is to be proven.
pub struct Local<'a> {
    model: &'a Model,
    maps: Maps<'a>,
    changes: Changes,
    /// Where they hold.
    domain: Upper,
}

impl<'a> Local<'a> {
    /// Norms of weights are proven when they are needed, each once, by `norms`. Ellipsoids on a domain
    /// say how far values can change as long as all embedding vectors, or the image, stay within it;
    /// every input asked about must, with what it may move by.
    ///
    /// # Errors
    /// [`Error::Data`] unless the model computes in f64 on the CPU.
    pub fn new(
        model: &'a Model,
        norms: &'a WeightNorms<'a>,
        ellipsoids: Option<(&EllipsoidBound, Upper)>,
    ) -> Result<Self, Error> {
        if model.dtype() != DType::F64 || !model.device().is_cpu() {
            return Err(Error::Data("proofs around an input need the model in f64".into()));
        }
        let (changes, domain) = match ellipsoids {
            Some((bound, domain)) => {
                (ellipsoid::changes(model, domain, &bound.multipliers)?, domain)
            }
            None => (Changes::default(), Upper::INFINITY),
        };
        Ok(Self { model, maps: Maps::new(model, norms), changes, domain })
    }

    /// The network at one input: embedding vectors `[tokens, dim]`, an image `[channels, height,
    /// width]` or a vector `[dim]`.
    ///
    /// # Errors
    /// [`Error`] if the input does not fit, or names a node that nothing is known about.
    pub fn at(&self, x: &Tensor) -> Result<Point, Error> {
        let trace = Trace::new(self.model, &self.maps, &self.changes, x)?;
        let (tokens, logits) = (Tokenwise::all(&trace)?, Logits::all(&trace)?);
        let mut point = Point { trace, domain: self.domain, tokens, logits, elements: Vec::new() };
        point.refine()?;
        Ok(point)
    }
}

/// A network at one input.
pub struct Point {
    trace: Trace,
    domain: Upper,
    /// What norms and elementwise nodes read, token by token.
    tokens: Vec<Tokenwise>,
    logits: Vec<Logits>,
    /// What elementwise nodes read, element by element, as claims of their own: place, token, claims.
    elements: Vec<(usize, usize, Claims)>,
}

impl Point {
    /// The outputs: those of the last token where there is one for each.
    pub fn outputs(&self) -> &[f64] {
        let output = &self.trace.output;
        &output.data[(output.rows.saturating_sub(1)) * output.columns..]
    }

    /// The largest output, if they are finite: what the network decides.
    pub fn class(&self) -> Option<usize> {
        largest(self.outputs()).map(|(class, _)| class)
    }

    /// Functionals of the last token's outputs, each a row of `data`.
    fn claims(&self, values: Vec<f64>, slack: Vec<Upper>, data: Vec<f64>) -> Result<Claims, Error> {
        let output = &self.trace.output;
        let tokens = vec![output.rows.saturating_sub(1)];
        let lambda = Functionals { count: values.len(), tokens, width: output.columns, data };
        let (lambda, remainders) = self.trace.back(lambda)?;
        let slopes = slopes(&lambda);
        Ok(Claims { values, slack, slopes, lambda: Some(lambda), remainders, rest: None })
    }

    /// The elements of one token that an elementwise node with jumps reads are claims themselves: their
    /// own slopes and remainders say how far each can move, which is far less than all of them may
    /// together. Where many tokens are read there would be too many; those of the last token count most.
    fn refine(&mut self) -> Result<(), Error> {
        const MAX_ELEMENTS: usize = 2048;
        let outputs = self.outputs().len();
        let read = self.trace.read_by_one(outputs)?;
        for (slot, width, pairs) in self.trace.bent() {
            let Some(token) = read.get(&slot).copied() else { continue };
            let count = if pairs { width / 2 } else { width };
            if count > MAX_ELEMENTS {
                continue;
            }
            let mut data = vec![0.0; count * width];
            for (i, row) in data.chunks_mut(width.max(1)).enumerate() {
                row[i] = 1.0;
                if pairs {
                    row[count + i] = -1.0;
                }
            }
            let lambda = Functionals { count, tokens: vec![token], width, data };
            let (lambda, mut remainders) =
                self.trace.back_from(slot, lambda, Remainders::new(count))?;
            remainders.quick = true;
            let (values, slack) = (vec![0.0; count], vec![Upper::ZERO; count]);
            let slopes = slopes(&lambda);
            let claims = Claims { values, slack, slopes, lambda: None, remainders, rest: None };
            self.elements.push((slot, token, claims));
        }
        Ok(())
    }

    /// By how much output `class` exceeds each of these others.
    ///
    /// # Errors
    /// Those of products.
    pub fn margins(&self, class: usize, others: &[usize]) -> Result<Claims, Error> {
        let z = self.outputs();
        let n = z.len();
        let mut data = vec![0.0; others.len() * n];
        let (mut values, mut slack) = (Vec::new(), Vec::new());
        for (row, j) in data.chunks_mut(n).zip(others) {
            row[class] += 1.0;
            row[*j] -= 1.0;
            values.push(z[class] - z[*j]);
            slack.push(gamma(2) * (crate::upper::abs(z[class]) + crate::upper::abs(z[*j])));
        }
        self.claims(values, slack, data)
    }

    /// The outputs themselves.
    ///
    /// # Errors
    /// Those of products.
    pub fn values(&self) -> Result<Claims, Error> {
        let z = self.outputs().to_vec();
        let n = z.len();
        let mut data = vec![0.0; n * n];
        (0..n).for_each(|i| data[i * n + i] = 1.0);
        self.claims(z, vec![Upper::ZERO; n], data)
    }

    /// How far the tokens of the input can be from where they are.
    fn input(&self, change: Change<'_>) -> Spread {
        let tokens = self.trace.tokens;
        let (radius, distance) = match change {
            Change::Within(radius, distance) => (radius, distance),
            Change::Replaced(replacements) => return replacements.spread(),
        };
        let r = Upper::from_f64(radius);
        let (each, total) = match distance {
            Distance::Token => (r, r * count(tokens).sqrt()),
            Distance::L2 => (r, r),
            Distance::Linf => {
                let width = self.trace.width;
                (r * count(width).sqrt(), r * count(width * tokens).sqrt())
            }
        };
        Spread::new(vec![each; tokens], total)
    }

    /// None outside of the domain. `quick`: without what is claimed of elements.
    fn deviations(&self, change: Change<'_>, quick: bool) -> Option<Deviations> {
        let input = self.input(change);
        let largest = input.largest();
        // What lies between two tokens of a ball is in it.
        let farthest = match change {
            Change::Within(..) => self.trace.largest + largest,
            Change::Replaced(replacements) => self.trace.largest.max(replacements.largest()),
        };
        (farthest <= self.domain).then(|| {
            let mut deviations = self.trace.grow(input, largest, &Under { point: self, change });
            if quick {
                return deviations;
            }
            for (slot, token, claims) in &self.elements {
                let end = |k: usize| {
                    let first = claims.first(k, change);
                    (first + claims.remainders.either(k, &deviations)).to_f64()
                };
                let all = (0..claims.values.len()).into_par_iter().map(end).collect();
                deviations.bound(*slot, *token, all);
            }
            deviations
        })
    }

    /// How far each claim's value can be from the computed one behind a change of the input of at most
    /// `radius`; infinite where nothing is known.
    pub fn reach(&self, claims: &Claims, radius: f64, distance: Distance) -> Vec<Upper> {
        let change = Change::Within(radius, distance);
        let Some(deviations) = self.deviations(change, false) else {
            return vec![Upper::INFINITY; claims.values.len()];
        };
        (0..claims.values.len())
            .map(|k| {
                claims.first(k, change) + claims.remainders.either(k, &deviations) + claims.slack[k]
            })
            .collect()
    }

    /// Whether every claim's value stays above 0 behind every change of at most `radius`.
    pub fn holds(&self, claims: &Claims, radius: f64, distance: Distance) -> bool {
        self.survives(claims, Change::Within(radius, distance))
    }

    /// Whether every claim's value stays above 0 whatever tokens are replaced; not if the replacements are
    /// of another input.
    pub fn withstands(&self, claims: &Claims, replacements: &Replacements) -> bool {
        replacements.are_of(&self.trace.input, self.trace.width)
            && self.survives(claims, Change::Replaced(replacements))
    }

    fn survives(&self, claims: &Claims, change: Change<'_>) -> bool {
        let quick = self.proves(claims, change, true);
        quick || (!self.elements.is_empty() && self.proves(claims, change, false))
    }

    fn proves(&self, claims: &Claims, change: Change<'_>, quick: bool) -> bool {
        let Some(deviations) = self.deviations(change, quick) else { return false };
        if claims.rest.as_ref().is_some_and(|rest| !rest.stays(change, &deviations)) {
            return false;
        }
        claims.by_hardness(change).into_iter().all(|k| {
            let first = claims.first(k, change) + claims.slack[k];
            let value = claims.values[k];
            // The cheap part first.
            first.to_f64() < value
                && (first + claims.remainders.at(k, &deviations, Side::Taken)).to_f64() < value
        })
    }

    /// Where a proof at this radius loses, for the claim that fails first: what each node's curvature
    /// and rounding may take, by its path, and what is first order (`""`). All of it together would have
    /// to stay below the claim's value.
    pub fn losses(&self, claims: &Claims, radius: f64, distance: Distance) -> Vec<(String, Upper)> {
        let change = Change::Within(radius, distance);
        let (Some(deviations), Some(k)) =
            (self.deviations(change, false), claims.by_hardness(change).first().copied())
        else {
            return Vec::new();
        };
        let mut out = vec![(String::new(), claims.first(k, change))];
        for (slot, lost) in claims.remainders.by_slot(k, &deviations) {
            let name = slot.map_or("rounding", |slot| self.trace.names[slot].as_str());
            match out.iter_mut().find(|(n, _)| n == name) {
                Some((_, sum)) => *sum = *sum + lost,
                None => out.push((name.into(), lost)),
            }
        }
        out
    }

    /// The largest radius that a search finds at which every claim's value stays above 0: 0 if there is
    /// none. It is proven, not estimated: the search only looks where to prove.
    pub fn radius(&self, claims: &Claims, distance: Distance) -> f64 {
        const HALVINGS: usize = 40;
        const STEPS: usize = 6;
        /// Where no claim changes to first order, the search begins here.
        const FAR: f64 = 1e9;
        let Some(most) = claims.most(distance) else { return f64::INFINITY };
        if most.is_nan() || most <= 0.0 {
            return 0.0;
        }
        let most = most.min(FAR);
        let proves =
            |at: f64, quick: bool| self.proves(claims, Change::Within(at, distance), quick);
        // Quickly, then from there upwards.
        let mut low = 0.0;
        let mut high = most;
        for _ in 0..HALVINGS {
            let at = 0.5 * high;
            if proves(at, true) {
                low = at;
                break;
            }
            high = at;
        }
        let narrow = |low: &mut f64, high: &mut f64, steps: usize, quick: bool| {
            for _ in 0..steps {
                let at = 0.5 * (*low + *high);
                if proves(at, quick) { *low = at } else { *high = at }
            }
        };
        narrow(&mut low, &mut high, STEPS, true);
        // What keeps the outputs that are not compared below may end the search.
        let known = claims.rest.as_ref().map_or(0.0, |rest| rest.global.min(most));
        if known > low && proves(known, false) {
            low = known;
        }
        if self.elements.is_empty() || low == 0.0 {
            return low;
        }
        high = most;
        let mut at = low;
        while at < most {
            at = (1.6 * at).min(most);
            if !proves(at, false) {
                high = at;
                break;
            }
            low = at;
        }
        narrow(&mut low, &mut high, 3, false);
        low
    }
}

/// What is known at a point under a change.
struct Under<'a> {
    point: &'a Point,
    change: Change<'a>,
}

impl Known for Under<'_> {
    fn tokens(&self, slot: usize, deviations: &Deviations) -> Option<Vec<Apart>> {
        let node = self.point.tokens.iter().find(|node| node.slot == slot)?;
        Some(node.at(self.change, deviations))
    }

    fn logits(&self, slot: usize, deviations: &Deviations) -> Option<Vec<[Upper; 2]>> {
        let node = self.point.logits.iter().find(|node| node.slot == slot)?;
        Some(node.at(self.change, deviations))
    }
}

/// The dual norms of functionals of the input.
fn slopes(lambda: &Functionals) -> Vec<Slopes> {
    let n = lambda.tokens.len() * lambda.width;
    let of = |k: usize| {
        let all = &lambda.data[k * n..(k + 1) * n];
        let rows = all.chunks(lambda.width.max(1)).map(vector_norm);
        let each: Vec<_> = lambda.tokens.iter().copied().zip(rows).collect();
        Slopes {
            token: each.iter().fold(Upper::ZERO, |sum, (_, x)| sum + *x),
            each,
            l2: vector_norm(all),
            linf: Upper::from_f64(all.iter().map(|x| x.abs()).sum::<f64>())
                * (Upper::ONE + gamma(all.len() + 4)),
        }
    };
    (0..lambda.count).map(of).collect()
}

/// Norms of a linear map of the input: dual ones of a functional, those from the input's to ℓ2 of others.
struct Slopes {
    /// Of each token that is read.
    each: Vec<(usize, Upper)>,
    token: Upper,
    l2: Upper,
    linf: Upper,
}

impl Slopes {
    /// How far a change takes what these are the norms of.
    fn along(&self, change: Change<'_>) -> Upper {
        let (radius, slope) = match change {
            Change::Within(radius, Distance::Token) => (radius, self.token),
            Change::Within(radius, Distance::L2) => (radius, self.l2),
            Change::Within(radius, Distance::Linf) => (radius, self.linf),
            Change::Replaced(replacements) => return replacements.at_most(&self.each),
        };
        slope * Upper::from_f64(radius)
    }

    /// The same for deviations of the tokens that they are read of.
    fn over(&self, read: &Spread) -> Upper {
        let each = self.each.iter().fold(Upper::ZERO, |sum, (t, x)| sum + *x * read.each[*t]);
        each.min(self.l2 * read.total)
    }
}

/// Numbers that the outputs give, and how they change with the input.
pub struct Claims {
    values: Vec<f64>,
    /// The rounding of the values themselves.
    slack: Vec<Upper>,
    slopes: Vec<Slopes>,
    /// What they are of the input to first order; none for those that are many.
    lambda: Option<Functionals>,
    remainders: Remainders,
    /// The outputs that are not compared one by one, which must stay below as well.
    rest: Option<Rest>,
}

/// Outputs that all are below another one.
struct Rest {
    /// By how much at least, as computed.
    margin: f64,
    /// They stay below within this distance, by the global bound.
    global: f64,
}

impl Rest {
    /// The difference of two outputs moves by at most √2 times what all of them together do.
    fn stays(&self, change: Change<'_>, deviations: &Deviations) -> bool {
        let globally = matches!(change, Change::Within(radius, _) if radius <= self.global);
        let farthest = Upper::from_f64(2.0).sqrt() * deviations.last;
        globally || farthest.to_f64() < self.margin
    }
}

impl Claims {
    /// With all outputs beside `class` and these others, which the global bound keeps below `class` within a
    /// distance of `global`.
    fn and_the_rest(mut self, z: &[f64], class: usize, others: &[usize], global: f64) -> Self {
        let mut rest = vec![true; z.len()];
        others.iter().chain([&class]).for_each(|j| rest[*j] = false);
        let below = z.iter().zip(rest).filter(|(_, rest)| *rest).map(|(x, _)| z[class] - x);
        let margin = below.reduce(f64::min);
        self.rest = margin.map(|margin| Rest { margin: margin.next_down(), global });
        self
    }

    /// The values at the input itself.
    pub fn at_input(&self) -> &[f64] {
        &self.values
    }

    /// What a change takes from claim k to first order; of a claim without λ, also what it adds.
    fn first(&self, k: usize, change: Change<'_>) -> Upper {
        match (change, &self.lambda) {
            (Change::Replaced(replacements), Some(lambda)) => replacements.along(lambda, k),
            _ => self.slopes[k].along(change),
        }
    }

    /// What a change of one token of the input leaves of the smallest value, to first order: no proof.
    fn left(&self, token: usize, change: &[f64]) -> f64 {
        let read = self
            .lambda
            .as_ref()
            .and_then(|lambda| Some((lambda, lambda.tokens.iter().position(|t| *t == token)?)));
        let taken = |k: usize| match read {
            Some((lambda, at)) => lambda.row(k, at).iter().zip(change).map(|(l, d)| l * d).sum(),
            None => 0.0,
        };
        (0..self.values.len()).map(|k| self.values[k] + taken(k)).fold(f64::INFINITY, f64::min)
    }

    /// The radius at which claim k fails to first order: no proof.
    pub fn tangent_of(&self, k: usize, distance: Distance) -> f64 {
        self.values[k] / self.first(k, Change::Within(1.0, distance)).to_f64()
    }

    /// The radius at which the first claim fails to first order, which no proof of this kind exceeds.
    fn most(&self, distance: Distance) -> Option<f64> {
        (0..self.values.len()).map(|k| self.tangent_of(k, distance)).reduce(f64::min)
    }

    /// The claims, those first that fail first.
    fn by_hardness(&self, change: Change<'_>) -> Vec<usize> {
        let left = |k: usize| self.values[k] / self.first(k, change).to_f64();
        let mut all: Vec<(f64, usize)> = (0..self.values.len()).map(|k| (left(k), k)).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        all.into_iter().map(|(_, k)| k).collect()
    }

    /// What a first-order estimate gives, which proves nothing: beside a proven radius it says what
    /// the remainder costs.
    pub fn tangent(&self, distance: Distance) -> f64 {
        self.most(distance).unwrap_or(f64::INFINITY).max(0.0)
    }
}

/// A model as [`Local`] needs it.
///
/// # Errors
/// Those of the conversion.
pub fn exact(model: &Model) -> Result<Model, Error> {
    Ok(model.to(&Device::Cpu, DType::F64)?)
}
