//! Certified radii of many inputs, beside those of the global bound and what an attack finds.

use candle_core::Tensor;
use lipschitz_nn::Model;
use lipschitz_nn::graph::{Input, Shape, join};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Claims, Distance, Local, Point, exact};
use crate::Error;
use crate::bound::{Block, Norm, Norms, SLACK, WeightNorms, walk};
use crate::ellipsoid::{self, Aim, EllipsoidBound, Ellipsoids};
use crate::robust::{self, Attack, Effort, Margins, Reach};
use crate::spectral::Method;
use crate::upper::{Upper, count};

/// What to survey.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How changes are measured.
    pub distance: Distance,
    /// Number of inputs, from the first.
    pub limit: usize,
    /// Radii at which every output is bounded.
    pub radii: Vec<f64>,
    /// How hard to attack; None: not at all.
    pub attack: Option<Effort>,
    /// Steps of the search for the global bound by ellipsoids; 0: by norms alone.
    pub search: usize,
}

/// Certified radii of inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Survey {
    /// Name in tables and plots.
    pub label: String,
    /// How changes are measured.
    pub distance: Distance,
    /// Tokens of an input, of the longest where they differ; 1 for images and vectors.
    pub tokens: usize,
    /// SHA-256 of the weights, in f64.
    pub weights_sha256: String,
    /// Steps of the search for the global bound by ellipsoids.
    pub search: usize,
    /// One for each input.
    pub inputs: Vec<Radius>,
}

/// What is proven around one input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Radius {
    /// Its number in the data.
    pub input: usize,
    /// SHA-256 of its numbers in f64: pixels, a vector, or embedding vectors.
    pub sha256: String,
    /// The largest output: the class or the next token.
    pub class: usize,
    /// Whether that is the label, where there is one.
    pub correct: Option<bool>,
    /// By how much it exceeds the second; where there is no second, the largest number.
    pub margin: f64,
    /// The decision is proven not to change within this distance: by this proof or the global bound. That
    /// of a network with one output never does, for which the largest number stands.
    pub radius: f64,
    /// What the global bound gives.
    pub global: f64,
    /// Where the decision would change to first order: what an exact proof could not be far above.
    pub tangent: f64,
    /// The smallest distance at which an attack changed the decision, if one did.
    pub broken: Option<f64>,
    /// Bounds of every output at each radius asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Outputs>,
    /// Where the proof loses, a little above the radius: what first order takes of the margin, and what
    /// each node's remainder does.
    pub lost: Vec<Lost>,
    /// Seconds of the proof.
    pub seconds: f64,
}

/// What a part of the network takes of a margin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lost {
    /// The node's path; `first order` and `rounding` are those of all.
    pub node: String,
    /// In the unit of the margin.
    pub share: Upper,
}

/// Bounds of outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outputs {
    /// Within this distance of the input.
    pub radius: f64,
    /// Each output is at least this; none where nothing is known.
    pub lower: Vec<Option<f64>>,
    /// And at most this.
    pub upper: Vec<Option<f64>>,
}

/// Sorted from the nearest: an attack tries these multiples of the proven radius.
const MULTIPLES: [f64; 12] = [1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 16.0, 32.0, 64.0];

/// Proves radii around the first inputs of `batches`: windows of token ids, or images and vectors with
/// their classes. `watch` is called with the number of each input before it.
///
/// # Errors
/// [`Error::Violated`] if an attack changes a decision within its proven radius; others if the data
/// does not fit the model.
pub fn survey<E: Into<robust::BoxError>>(
    model: &Model,
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    settings: &Settings,
    watch: &dyn Fn(usize),
) -> Result<Survey, Error> {
    let model = exact(model)?;
    let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
    let cases = robust::cases(&model, batches, settings.limit)?;
    let global = Global::new(&model, &norms, &cases, settings)?;
    let local = Local::new(&model, &norms, global.ellipsoids())?;
    let mut inputs = Vec::new();
    let embedded = matches!(model.graph().input(), Input::Tokens { .. });
    for (x, classes) in &cases {
        for (i, label) in classes.iter().enumerate() {
            watch(inputs.len());
            let start = std::time::Instant::now();
            let input = inputs.len();
            let one = x.narrow(0, i, 1)?;
            let x = robust::as_input(model.graph(), &one)?.squeeze(0)?;
            let point = local.at(&x)?;
            let Decision { class, margin, claims, known } = decision(&point, &global, input)?;
            let found = point.radius(&claims, settings.distance);
            let tangent = finite(claims.tangent(settings.distance));
            let losses = point.losses(&claims, found, settings.distance).into_iter();
            let lost = losses
                .map(|(node, share)| {
                    let node = if node.is_empty() { "first order".into() } else { node };
                    Lost { node, share }
                })
                .collect();
            let known = known * (1.0 - SLACK);
            let radius = finite((found * (1.0 - SLACK)).max(known));
            let bounds = match settings.radii.is_empty() {
                true => Vec::new(),
                false => {
                    let claims = point.values()?;
                    let at = |radius: &f64| {
                        let wider = |(z, r): (&f64, &Upper)| {
                            let slack = Upper::from_f64(SLACK);
                            *r + slack * (*r + Upper::from_f64(z.abs()))
                        };
                        outputs(&point, &claims, *radius, settings.distance, &wider)
                    };
                    settings.radii.iter().map(at).collect()
                }
            };
            let seconds = start.elapsed().as_secs_f64();
            let broken = match settings.attack {
                Some(effort) => attack(
                    &model,
                    &one,
                    class,
                    radius.max(1e-3 * tangent),
                    settings.distance,
                    effort,
                )?,
                None => None,
            };
            if let Some(at) = broken.filter(|at| *at <= radius) {
                return Err(Error::Violated(format!(
                    "input {input}: the attack changes the decision within {at}, but {radius} is \
                     certified: this is a defect, please report it"
                )));
            }
            let correct = (!embedded).then_some(*label == class);
            inputs.push(Radius {
                input,
                sha256: digest(&one)?,
                class,
                correct,
                margin,
                radius,
                global: finite(known),
                tangent,
                broken,
                outputs: bounds,
                lost,
                seconds,
            });
        }
    }
    let tokens = longest(&cases)?;
    let weights_sha256 = crate::pinned::Pinned::new(&model)?.digest().to_string();
    let (label, distance) = (String::new(), settings.distance);
    let search = settings.search;
    Ok(Survey { label, distance, tokens, weights_sha256, search, inputs })
}

/// How long the longest case is.
fn longest(cases: &[(Tensor, Vec<usize>)]) -> Result<usize, Error> {
    let lengths = cases.iter().map(|(x, _)| x.dim(1)).collect::<Result<Vec<_>, _>>()?;
    Ok(lengths.into_iter().max().unwrap_or(0))
}

/// JSON has no infinite number. What is no number proves nothing: 0, where `min` would give the largest.
fn finite(x: f64) -> f64 {
    if x.is_nan() { 0.0 } else { x.min(f64::MAX) }
}

/// What a network decides at an input, and what is known of it beside the proof around the input.
pub(super) struct Decision {
    pub(super) class: usize,
    pub(super) margin: f64,
    /// The margins over the others.
    pub(super) claims: Claims,
    /// The radius by the global bound over all.
    known: f64,
}

pub(super) fn decision(point: &Point, global: &Global, input: usize) -> Result<Decision, Error> {
    let z = point.outputs();
    let Some((class, margin)) = robust::largest(z) else {
        return Err(Error::Data(format!("input {input}: an output is not finite")));
    };
    let others = rivals(z, class);
    let mut claims = point.margins(class, &others)?;
    if others.len() + 1 < z.len() {
        claims = claims.and_the_rest(z, class, &others, global.others(z, class, &others));
    }
    Ok(Decision { class, margin: finite(margin), claims, known: global.radius(z, class) })
}

/// Whether a survey is about this network.
///
/// # Errors
/// [`Error::Violated`] if it is about another one; others if the weights cannot be read.
pub fn about(model: &Model, claim: &Survey) -> Result<(), Error> {
    if crate::pinned::Pinned::new(&exact(model)?)?.digest() == claim.weights_sha256 {
        return Ok(());
    }
    Err(Error::Violated("the weights are not those that the radii are about".into()))
}

/// Proves a survey again, around the same inputs: radii, bounds of outputs, classes and whether they are
/// right. What an attack found, tangents, losses and times are not proven.
///
/// # Errors
/// [`Error::Violated`] if the network or an input is another one, or something is not proven; others as
/// [`survey`].
pub fn verify<E: Into<robust::BoxError>>(
    model: &Model,
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    claim: &Survey,
    watch: &dyn Fn(usize),
) -> Result<(), Error> {
    /// No search for multipliers takes more steps.
    const SEARCH: usize = 100_000;
    let violated = |what: String| Err(Error::Violated(what));
    let ascending = claim.inputs.windows(2).all(|pair| pair[0].input < pair[1].input);
    if claim.inputs.is_empty() || !ascending || claim.search > SEARCH {
        return violated("no radii of inputs in ascending order".into());
    }
    about(model, claim)?;
    let model = exact(model)?;
    let settings = Settings {
        distance: claim.distance,
        limit: claim.inputs.last().map_or(0, |row| row.input.saturating_add(1)),
        radii: Vec::new(),
        attack: None,
        search: claim.search,
    };
    let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
    let cases = robust::cases(&model, batches, settings.limit)?;
    let global = Global::new(&model, &norms, &cases, &settings)?;
    let local = Local::new(&model, &norms, global.ellipsoids())?;
    if longest(&cases)? != claim.tokens {
        return violated(format!("its longest input is not one of {} tokens", claim.tokens));
    }
    let embedded = matches!(model.graph().input(), Input::Tokens { .. });
    let all = cases
        .iter()
        .flat_map(|(x, classes)| classes.iter().enumerate().map(move |(i, label)| (x, i, *label)));
    let all: Vec<_> = all.collect();
    for row in &claim.inputs {
        watch(row.input);
        let Some((x, i, label)) = all.get(row.input) else {
            return violated(format!("input {}: the data holds {} inputs", row.input, all.len()));
        };
        let one = x.narrow(0, *i, 1)?;
        if digest(&one)? != row.sha256 {
            return violated(format!("input {}: is not the one of the radii", row.input));
        }
        let x = robust::as_input(model.graph(), &one)?.squeeze(0)?;
        let point = local.at(&x)?;
        let Decision { class, margin, claims, known } = decision(&point, &global, row.input)?;
        if class != row.class {
            return violated(format!("input {}: output {class} is the largest", row.input));
        }
        let correct = (!embedded).then_some(*label == class);
        // Another machine rounds otherwise.
        let size = point.outputs().iter().fold(0.0_f64, |max, z| max.max(z.abs()));
        let near = margin == row.margin || (margin - row.margin).abs() <= 1e-9 * size;
        if correct != row.correct || !near || !(0.0..=known).contains(&row.global) {
            return violated(format!("input {}: is described wrongly", row.input));
        }
        let radius = row.radius;
        if row.broken.is_some_and(|at| at <= radius) {
            return violated(format!("input {}: is changed within its radius", row.input));
        }
        let proven = (0.0..=known).contains(&radius)
            || (radius >= 0.0 && point.holds(&claims, radius, claim.distance));
        if !(proven || radius == 0.0) {
            return violated(format!("input {}: a radius of {radius} is not proven", row.input));
        }
        if row.outputs.is_empty() {
            continue;
        }
        let values = point.values()?;
        for stated in &row.outputs {
            let at = stated.radius;
            if !contains(stated, &outputs(&point, &values, at, claim.distance, &|(_, r)| *r)) {
                return violated(format!("input {}: outputs at {at} are not proven", row.input));
            }
        }
    }
    Ok(())
}

/// SHA-256 of the numbers of an input, in f64.
fn digest(x: &Tensor) -> Result<String, Error> {
    let mut hash = Sha256::new();
    x.flatten_all()?.to_vec1::<f64>()?.iter().for_each(|x| hash.update(x.to_le_bytes()));
    Ok(hex::encode(hash.finalize()))
}

/// Bounds of every output, a little wider than what is proven by `wider`, from the value and its reach.
fn outputs(
    point: &Point,
    claims: &Claims,
    radius: f64,
    distance: Distance,
    wider: &dyn Fn((&f64, &Upper)) -> Upper,
) -> Outputs {
    let reach = point.reach(claims, radius, distance);
    let bound = |sign: f64| {
        let pairs = claims.at_input().iter().zip(&reach);
        pairs.map(|(z, r)| end(*z, wider((z, r)), sign)).collect()
    };
    Outputs { radius, lower: bound(-1.0), upper: bound(1.0) }
}

/// Whether stated bounds of outputs hold all that is proven of them.
fn contains(stated: &Outputs, proven: &Outputs) -> bool {
    let below = |stated: &Option<f64>, proven: &Option<f64>| match (stated, proven) {
        (None, _) => true,
        (Some(stated), Some(proven)) => stated <= proven,
        (Some(_), None) => false,
    };
    let above = |stated: &Option<f64>, proven: &Option<f64>| match (stated, proven) {
        (None, _) => true,
        (Some(stated), Some(proven)) => stated >= proven,
        (Some(_), None) => false,
    };
    let all = |a: &[Option<f64>],
               b: &[Option<f64>],
               holds: &dyn Fn(&Option<f64>, &Option<f64>) -> bool| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| holds(a, b))
    };
    all(&stated.lower, &proven.lower, &below) && all(&stated.upper, &proven.upper, &above)
}

/// `z ± reach`, rounded outward.
fn end(z: f64, reach: Upper, sign: f64) -> Option<f64> {
    let reach = reach.to_f64();
    let x = z + sign * reach;
    let x = if sign > 0.0 { x.next_up() } else { x.next_down() };
    x.is_finite().then_some(x)
}

/// The outputs that are compared one by one: all, or the largest ones of many.
fn rivals(z: &[f64], class: usize) -> Vec<usize> {
    const MAX_RIVALS: usize = 100;
    let mut all: Vec<usize> = (0..z.len()).filter(|j| *j != class).collect();
    if all.len() > MAX_RIVALS {
        all.sort_by(|a, b| z[*b].total_cmp(&z[*a]));
        all.truncate(MAX_RIVALS);
    }
    all
}

/// The smallest of a few distances at which an attack changes the decision.
fn attack(
    model: &Model,
    x: &Tensor,
    class: usize,
    radius: f64,
    distance: Distance,
    effort: Effort,
) -> Result<Option<f64>, Error> {
    if radius == 0.0 || radius >= f64::MAX {
        return Ok(None);
    }
    let (b, tokens, width) = x.dims3()?;
    let together = distance != Distance::Token;
    let graph = model.graph();
    let network = |x: &Tensor| -> Result<Tensor, Error> {
        let x = x.reshape((x.dim(0)?, tokens, width))?;
        robust::outputs(model, &robust::as_input(graph, &x)?)
    };
    // All together: as one token.
    let flat = if together { x.reshape((b, 1, tokens * width))? } else { x.clone() };
    let linf = distance == Distance::Linf;
    let attack = Attack { network: &network, effort, reach: Reach::All, unit: false, linf };
    for (seed, multiple) in MULTIPLES.iter().enumerate() {
        let at = radius * multiple;
        if attack.run(&flat, &[class], at, seed as u64)?.contains(&true) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// The global bound, on a few domains.
pub(super) struct Global {
    /// On the last domain, which holds what changes a decision, with it.
    ellipsoids: Option<(Ellipsoids, Upper)>,
    /// The margins on the domain that a change of at most this much stays in.
    domains: Vec<(f64, Margins)>,
    /// What a change of the surveyed size is as one of a token.
    factor: f64,
}

impl Global {
    pub(super) fn new(
        model: &Model,
        norms: &WeightNorms<'_>,
        cases: &robust::Cases,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let graph = model.graph();
        let (natural, width) = match (graph.input(), graph.nodes().first()) {
            (Input::Tokens { .. }, Some(node)) => {
                let table = Block::whole(join(&node.name, "weight"));
                let width = match &node.op {
                    lipschitz_nn::graph::Op::Embedding { dim, .. } => *dim,
                    _ => 1,
                };
                (norms.norm(&Norm::Row(table))?, width)
            }
            (Input::Pixels { channels, height, width }, _) => {
                (robust::largest_norm(cases)?, channels * height * width)
            }
            (Input::Vector { dim }, _) => (robust::largest_norm(cases)?, dim),
            (Input::Tokens { .. }, None) => (Upper::INFINITY, 1),
        };
        // Embedding vectors and images are large beside what changes a decision; vectors need not be.
        let shares: &[f64] = match (natural.is_finite(), graph.input()) {
            (true, Input::Vector { .. }) => &[0.1, 2.0],
            (true, Input::Pixels { .. }) => &[0.01, 0.5, 0.1],
            (true, Input::Tokens { .. }) => &[0.01, 0.1],
            (false, _) => &[f64::INFINITY],
        };
        let (mut domains, mut last) = (Vec::new(), None);
        for share in shares {
            let more = natural.to_f64() * share;
            let domain = match more.is_finite() {
                true => Some(natural + Upper::from_f64(more)),
                false => None,
            };
            let steps = settings.search;
            let ball = domain.unwrap_or(Upper::INFINITY);
            let ellipsoids: Option<Ellipsoids> =
                ellipsoid::tighten(model, ball, Aim::Pairs, steps, &mut |_, _| {})?;
            let walk = walk(graph, norms, domain)?;
            domains.push((more, Margins::new(graph, &walk, norms, ellipsoids.as_ref())?));
            last = ellipsoids.map(|e| (e, ball));
            if !matches!(graph.output(), Shape::Tokens(_) | Shape::Vector(_)) {
                return Err(Error::Data("the model names no class".into()));
            }
        }
        let factor = match settings.distance {
            Distance::Token | Distance::L2 => 1.0,
            // ‖δ‖₂ ≤ √n ‖δ‖∞
            Distance::Linf => count(width).sqrt().to_f64(),
        };
        Ok(Self { ellipsoids: last, domains, factor })
    }

    pub(super) fn ellipsoids(&self) -> Option<(&EllipsoidBound, Upper)> {
        self.ellipsoids.as_ref().map(|(e, domain)| (&e.bound, *domain))
    }

    /// The best radius of any domain, which does not leave it.
    fn best(&self, on: impl Fn(&Margins) -> f64) -> f64 {
        let radius = |(most, margins): &(f64, Margins)| on(margins).min(*most);
        let best = self.domains.iter().map(radius).fold(0.0, f64::max);
        (best / self.factor).next_down().max(0.0)
    }

    fn radius(&self, z: &[f64], class: usize) -> f64 {
        self.best(|margins| margins.radius(z, class))
    }

    /// Whether an input of the natural domain with these outputs, as computed in f64, is of this class.
    pub(super) fn decides(&self, z: &[f64], class: usize) -> bool {
        self.domains.first().is_some_and(|(_, margins)| margins.radius(z, class) > 0.0)
    }

    /// The same against the outputs that are not among these.
    fn others(&self, z: &[f64], class: usize, rivals: &[usize]) -> f64 {
        let mut own = z.to_vec();
        rivals.iter().for_each(|j| own[*j] = f64::NEG_INFINITY);
        self.best(|margins| margins.radius(&own, class))
    }
}

#[cfg(test)]
mod tests {
    use super::finite;

    #[test]
    fn what_is_no_number_is_no_radius() {
        assert_eq!([f64::NAN, f64::INFINITY, 0.5].map(finite), [0.0, f64::MAX, 0.5]);
    }
}
