//! What a constant implies for predictions: for each radius, the share that is proven not to
//! change, and the share that an attack does not change. Proven ≤ true ≤ not attacked, for every
//! single input.

mod attack;
mod cases;
mod images;
mod margins;
mod tokens;

pub(crate) use attack::Attack;
pub use attack::{Effort, Reach};
pub(crate) use cases::{Cases, as_input, cases, largest_norm, outputs};
pub use images::{BATCH, EPS_36_255, PUBLISHED, certified_accuracy, constants, images};
pub use margins::{Margins, largest};
pub(crate) use tokens::windows;
pub use tokens::{WINDOWS, tokens, window};

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::upper::Upper;

/// Any error of the code that reads the data.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Radii, effort and number of inputs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Radii, at least 0.
    pub eps: Vec<f64>,
    /// How hard to attack.
    pub effort: Effort,
    /// Number of inputs to evaluate, from the first.
    pub limit: usize,
    /// Steps of the search for a proof by ellipsoids; 0: by norms alone.
    pub search: usize,
}

/// The result, as `--json` holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Robustness {
    /// Name in tables and plots.
    pub label: String,
    /// What the shares count.
    pub of: Share,
    /// What a radius measures.
    pub unit: String,
    /// Number of inputs evaluated.
    pub inputs: usize,
    /// Number of inputs available.
    pub available: usize,
    /// The network's constant, ℓ2 → ℓ2, on the domain of the largest radius.
    pub lipschitz: Upper,
    /// ℓ2 radius of its domain, without the radius of a change, which is added to it.
    pub domain: Upper,
    /// The largest ℓ2 distance of two embedding rows, for language models.
    pub diameter: Option<Upper>,
    /// Steps per search.
    pub steps: usize,
    /// Searches per input.
    pub restarts: usize,
    /// One row per radius.
    pub rows: Vec<Shares>,
    /// Radius and certified share at many radii, for plots.
    pub curve: Vec<(f64, f64)>,
}

/// What the shares count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// Images that are and stay correctly classified.
    Accuracy,
    /// Predicted next tokens that do not change, correct or not.
    Stability,
}

/// Shares at one radius.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// The radius.
    pub eps: f64,
    /// Share without an attack.
    pub clean: f64,
    /// Share that the attack on one token does not change, for language models.
    pub attacked_one: Option<f64>,
    /// Share that the attack does not change.
    pub attacked: f64,
    /// Share that is proven not to change.
    pub certified: f64,
}

/// A proven share in per cent, never rounded up.
pub fn percent(share: f64) -> String {
    let hundredths = 1e4 * share;
    // A whole number of hundredths is kept despite the rounding of the product.
    format!("{:.2} %", (hundredths + 1e-6).floor() / 100.0)
}

/// Attacks the inputs that are not broken yet: a point found at a smaller radius counts at a larger
/// one as well.
fn attack_left(
    attack: &Attack,
    inputs: &[(Tensor, Vec<usize>)],
    eps: f64,
    broken: &mut [bool],
    watch: &dyn Fn(f64),
) -> Result<(), Error> {
    watch(eps);
    if eps == 0.0 {
        return Ok(());
    }
    let mut first = 0;
    for (seed, (x, classes)) in inputs.iter().enumerate() {
        watch(eps);
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

/// Checks that no certified prediction was changed.
fn check(broken: &[bool], radii: &[f64], eps: f64) -> Result<(), Error> {
    match broken.iter().zip(radii).position(|(broken, radius)| *broken && *radius > eps) {
        Some(i) => Err(Error::Violated(format!(
            "input {i}: the attack changes the prediction within {eps}, but {} is certified: this \
             is a defect of the certificate, please report it",
            radii[i]
        ))),
        None => Ok(()),
    }
}

/// Checks that certified ≤ attacked ≤ clean in every row.
fn ordered(rows: &[Shares]) -> Result<(), Error> {
    for Shares { eps, clean, attacked_one, attacked, certified } in rows {
        let one = attacked_one.unwrap_or(*attacked);
        if !(certified <= attacked && *attacked <= one && one <= *clean) {
            return Err(Error::Violated(format!(
                "at {eps} certified {certified}, attacked {attacked} and clean {clean} are out of \
                 order: this is a defect, please report it"
            )));
        }
    }
    Ok(())
}

/// The certified share at many radii, including those of the rows.
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

/// Radii in ascending order, each once.
fn sorted(eps: &[f64]) -> Vec<f64> {
    // Adding 0 turns −0 into 0.
    let mut eps: Vec<f64> = eps.iter().map(|eps| eps + 0.0).collect();
    eps.sort_by(f64::total_cmp);
    eps.dedup();
    eps
}

/// The share of inputs that are not broken.
fn share(broken: &[bool]) -> f64 {
    broken.iter().filter(|b| !**b).count() as f64 / broken.len().max(1) as f64
}

/// The share of radii above `eps`.
fn above(radii: &[f64], eps: f64) -> f64 {
    radii.iter().filter(|r| **r > eps).count() as f64 / radii.len().max(1) as f64
}
