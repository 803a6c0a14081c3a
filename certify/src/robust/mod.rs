//! What a constant says about predictions: for each radius the share that is proven to stay, and
//! the share that an attack does not change. Proven ≤ true ≤ not attacked, for every single input.

mod attack;
mod margins;
mod tokens;

pub use attack::{Effort, Reach};
pub use margins::{Margins, largest};
pub use tokens::{WINDOWS, tokens, window};

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::Model;
use lipschitz_nn::graph::Input;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::bound::{Walk, WeightNorms, walk};
use crate::spectral::Method;
use crate::upper::Upper;
use attack::{Attack, beaten};

/// Images worked on at once.
pub const BATCH: usize = 250;

/// The radius at which certified accuracies of CIFAR-10 are compared: 36/255, in pixels from 0 to
/// 1.
pub const EPS_36_255: f64 = 36.0 / 255.0;

/// Any error of whoever reads the data.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How much to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Radii, from 0 on.
    pub eps: Vec<f64>,
    /// How hard to attack.
    pub effort: Effort,
    /// Inputs to look at, from the first.
    pub limit: usize,
}

/// What was found, as `--json` holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Robustness {
    /// Name in tables and pictures.
    pub label: String,
    /// What the shares are of.
    pub of: Share,
    /// What a radius is measured in.
    pub unit: String,
    /// Inputs looked at.
    pub inputs: usize,
    /// Inputs there are.
    pub available: usize,
    /// The network's constant, ℓ2 → ℓ2, on the domain of the largest radius.
    pub lipschitz: Upper,
    /// ℓ2 radius of the domain that it holds on, without what the radius adds to it.
    pub domain: Upper,
    /// The largest ℓ2 distance of two embedding rows, for language models.
    pub diameter: Option<Upper>,
    /// Steps of each search.
    pub steps: usize,
    /// Searches an input.
    pub restarts: usize,
    /// A row a radius.
    pub rows: Vec<Shares>,
    /// Radius and certified share at many radii, for pictures.
    pub curve: Vec<(f64, f64)>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// Images whose class is right and stays so.
    Accuracy,
    /// Next tokens that stay what they are, right or wrong.
    Stability,
}

/// Shares at one radius.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// The radius.
    pub eps: f64,
    /// Without a change.
    pub clean: f64,
    /// That the attack on one token leaves, for language models.
    pub attacked_one: Option<f64>,
    /// That the attack leaves.
    pub attacked: f64,
    /// That are proven.
    pub certified: f64,
}

/// Certified, attacked and clean accuracy on images in \[0, 1\]. The adversary moves an image by an
/// ℓ2 distance of at most ε and stays in the cube of images; a tie counts as wrong.
///
/// `batches` gives `(images, classes)`, `[batch, channels, height, width]` and u32 `[batch]`, of
/// which the first [`Settings::limit`] images are looked at; batches of [`BATCH`] make what the
/// attack draws comparable. `watch` hears the radius at work.
///
/// # Errors
/// [`Error::Violated`] if an attack changes a prediction that is proven to stay; others if the data
/// does not fit the model.
pub fn images<E: Into<BoxError>>(
    model: &Model,
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    available: usize,
    settings: &Settings,
    watch: &dyn Fn(f64),
) -> Result<Robustness, Error> {
    let model = model.to(&Device::Cpu, DType::F64)?;
    let (shape, walk, margins) = over_images(&model)?;
    let inputs = inputs(batches, settings.limit)?;
    let count = inputs.iter().map(|(_, classes)| classes.len()).sum();
    let shape = |x: &Tensor| x.reshape((x.dim(0)?, shape[0], shape[1], shape[2]));
    let network = |x: &Tensor| -> Result<Tensor, Error> { Ok(model.forward(&shape(x)?)?) };
    let mut broken = Vec::new();
    let mut radii = Vec::new();
    for (x, classes) in &inputs {
        for (logits, class) in network(x)?.to_vec2::<f64>()?.iter().zip(classes) {
            broken.push(beaten(logits, *class));
            radii.push(margins.radius(logits, *class));
        }
    }
    let clean = share(&broken);
    let mut rows = Vec::new();
    for eps in sorted(&settings.eps) {
        watch(eps);
        let attack =
            Attack { network: &network, effort: settings.effort, reach: Reach::All, unit: true };
        attack_left(&attack, &inputs, eps, &mut broken)?;
        check(&broken, &radii, eps)?;
        rows.push(Shares {
            eps,
            clean,
            attacked_one: None,
            attacked: share(&broken),
            certified: above(&radii, eps),
        });
    }
    ordered(&rows)?;
    Ok(Robustness {
        label: String::new(),
        of: Share::Accuracy,
        unit: "ℓ2 distance of images with pixels in [0, 1]".into(),
        inputs: count,
        available,
        lipschitz: walk.lipschitz,
        domain: walk.domain,
        diameter: None,
        steps: settings.effort.steps,
        restarts: settings.effort.restarts,
        curve: curve(&rows, |eps| Ok(above(&radii, eps)))?,
        rows,
    })
}

/// The share of images whose class is right and proven to stay so within ℓ2 distance `eps`;
/// `batches` as for [`images`].
///
/// # Errors
/// If the data does not fit the model.
pub fn certified_accuracy<E: Into<BoxError>>(
    model: &Model,
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    eps: f64,
) -> Result<f64, Error> {
    let model = model.to(&Device::Cpu, DType::F64)?;
    let (_, _, margins) = over_images(&model)?;
    let mut radii = Vec::new();
    for batch in batches {
        let (x, y) = batch.map_err(|e| Error::Batch(e.into()))?;
        let logits = model.forward(&x.to_dtype(DType::F64)?)?.to_vec2::<f64>()?;
        let classes = y.to_vec1::<u32>()?;
        let radius = |(z, class): (&Vec<f64>, u32)| margins.radius(z, class as usize);
        radii.extend(logits.iter().zip(classes).map(radius));
    }
    Ok(above(&radii, eps))
}

/// The walk over the ball that holds all images of the model's shape, and its margins.
fn over_images(model: &Model) -> Result<([usize; 3], Walk, Margins), Error> {
    let Input::Pixels { channels, height, width } = model.graph().input() else {
        return Err(Error::Data("the model reads no images".into()));
    };
    let norms = WeightNorms::new(model, Method::Proven, &|_| {});
    let radius = Upper::from_f64((channels * height * width) as f64).sqrt();
    let walk = walk(model.graph(), &norms, Some(radius))?;
    let margins = Margins::new(&walk, &norms)?;
    Ok(([channels, height, width], walk, margins))
}

/// A share that is proven, in per cent, not rounded up.
pub fn percent(share: f64) -> String {
    let hundredths = 1e4 * share;
    // What is one hundredth but for rounding is not cut down to the one below.
    format!("{:.2} %", (hundredths + 1e-6).floor() / 100.0)
}

/// The first `limit` images as rows `[batch, 1, pixels]` in f64 with their classes.
fn inputs<E: Into<BoxError>>(
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    limit: usize,
) -> Result<Vec<(Tensor, Vec<usize>)>, Error> {
    let (mut out, mut count) = (Vec::new(), 0);
    for batch in batches {
        let (x, y) = batch.map_err(|e| Error::Batch(e.into()))?;
        let take = x.dim(0)?.min(limit - count);
        let x = x.narrow(0, 0, take)?.to_dtype(DType::F64)?.reshape((take, 1, ()))?;
        let classes = y.to_vec1::<u32>()?.into_iter().take(take).map(|class| class as usize);
        out.push((x, classes.collect()));
        count += take;
        if count == limit {
            break;
        }
    }
    match count {
        0 => Err(Error::Data("there are no images to look at".into())),
        _ => Ok(out),
    }
}

/// Attacks what is not broken yet: a point found at a smaller radius is one at a larger as well.
fn attack_left(
    attack: &Attack,
    inputs: &[(Tensor, Vec<usize>)],
    eps: f64,
    broken: &mut [bool],
) -> Result<(), Error> {
    if eps == 0.0 {
        return Ok(());
    }
    let mut first = 0;
    for (seed, (x, classes)) in inputs.iter().enumerate() {
        let own = &mut broken[first..first + classes.len()];
        first += classes.len();
        let left: Vec<usize> = (0..own.len()).filter(|i| !own[*i]).collect();
        if left.is_empty() {
            continue;
        }
        let rows = Tensor::new(left.iter().map(|i| *i as u32).collect::<Vec<_>>(), &Device::Cpu)?;
        let classes: Vec<usize> = left.iter().map(|i| classes[*i]).collect();
        let found = attack.run(&x.index_select(&rows, 0)?, &classes, eps, seed as u64)?;
        left.iter().zip(found).for_each(|(i, found)| own[*i] |= found);
    }
    Ok(())
}

/// No prediction that is proven to stay was changed.
fn check(broken: &[bool], radii: &[f64], eps: f64) -> Result<(), Error> {
    match broken.iter().zip(radii).position(|(broken, radius)| *broken && *radius > eps) {
        Some(i) => Err(Error::Violated(format!(
            "input {i}: the attack changes the prediction within {eps}, but {} is certified: this is a defect of the \
             certificate, please report it",
            radii[i]
        ))),
        None => Ok(()),
    }
}

/// Certified ≤ attacked ≤ clean, in every row.
fn ordered(rows: &[Shares]) -> Result<(), Error> {
    for Shares { eps, clean, attacked_one, attacked, certified } in rows {
        let one = attacked_one.unwrap_or(*attacked);
        if !(certified <= attacked && *attacked <= one && one <= *clean) {
            return Err(Error::Violated(format!(
                "at {eps} certified {certified}, attacked {attacked} and clean {clean} are out of order: this is a defect, \
                 please report it"
            )));
        }
    }
    Ok(())
}

/// The share at many radii, those of the rows among them.
fn curve(
    rows: &[Shares],
    certified: impl Fn(f64) -> Result<f64, Error>,
) -> Result<Vec<(f64, f64)>, Error> {
    const POINTS: usize = 100;
    let known: BTreeMap<u64, f64> =
        rows.iter().map(|row| (row.eps.to_bits(), row.certified)).collect();
    let end = rows.last().map_or(0.0, |row| row.eps);
    let mut all: Vec<f64> = (0..=POINTS).map(|i| end * i as f64 / POINTS as f64).collect();
    all.extend(rows.iter().map(|row| row.eps));
    let all = sorted(&all);
    all.into_iter()
        .map(|eps| {
            Ok((eps, known.get(&eps.to_bits()).copied().map_or_else(|| certified(eps), Ok)?))
        })
        .collect()
}

fn sorted(eps: &[f64]) -> Vec<f64> {
    // Without −0.
    let mut eps: Vec<f64> = eps.iter().map(|eps| eps + 0.0).collect();
    eps.sort_by(f64::total_cmp);
    eps.dedup();
    eps
}

/// The share that is not broken.
fn share(broken: &[bool]) -> f64 {
    broken.iter().filter(|b| !**b).count() as f64 / broken.len().max(1) as f64
}

/// The share of radii above `eps`.
fn above(radii: &[f64], eps: f64) -> f64 {
    radii.iter().filter(|r| **r > eps).count() as f64 / radii.len().max(1) as f64
}
