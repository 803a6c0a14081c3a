//! From a wanted constant to caps, before the first step: the walk of the certificate, with caps in place of norms.

use std::collections::HashMap;

use anyhow::{Result, bail};
use certify::Error;
use certify::bound::{Block, Norm, Norms, walk};
use certify::upper::Upper;
use lipschitz_nn::Graph;
use lipschitz_nn::graph::{Axis, Geometry, Parameter};
use lipschitz_nn::norm::rms_to_rms;
use lipschitz_opt::constraint::ConstraintConfig;

/// What a constraint promises about every weight of a graph.
struct Caps {
    weights: HashMap<String, Cap>,
}

struct Cap {
    parameter: Parameter,
    /// ℓ2, of the whole.
    whole: Upper,
    /// ℓ2, of each head's block of rows.
    head: Option<Upper>,
}

impl Caps {
    fn get(&self, name: &str) -> Result<&Cap, Error> {
        self.weights.get(name).ok_or_else(|| Error::Unknown(format!("the cap of `{name}`")))
    }
}

impl Caps {
    fn matrix(&self, block: &Block) -> Result<Upper, Error> {
        if let Some(gain) = &block.gain {
            return Err(unknown(gain));
        }
        let cap = self.get(&block.weight)?;
        // A cap a head bounds every block that lies inside a head; blocks asked for are heads.
        let blocks = cap.parameter.heads.is_some_and(|h| h.axis == Axis::Rows && h.count == block.rows.count);
        Ok(if blocks { cap.head.unwrap_or(cap.whole).min(cap.whole) } else { cap.whole })
    }
}

impl Norms for Caps {
    fn norm(&self, norm: &Norm) -> Result<Upper, Error> {
        match norm {
            Norm::Matrix(block) | Norm::Row(block) => self.matrix(block),
            Norm::Product(a, b) | Norm::TransposedProduct(a, b) => Ok(self.matrix(a)? * self.matrix(b)?),
            // A difference of two rows is Wᵀ times a vector of norm √2; rows of tables are capped one by one.
            Norm::RowDifference(block) => {
                let two = Upper::from_f64(2.0);
                let table = self.get(&block.weight)?.parameter.geometry == Geometry::Table;
                Ok(self.matrix(block)? * if table { two } else { two.sqrt() })
            }
            Norm::Affine(_, vector, _) | Norm::Largest(vector) => Err(unknown(vector)),
            Norm::Vector(block) => Err(unknown(&block.weight)),
        }
    }
}

fn unknown(vector: &str) -> Error {
    Error::Unknown(format!("the cap of `{vector}`: vectors have none"))
}

/// The constant, RMS → RMS, that holds for every network whose weights obey the constraint.
///
/// # Errors
/// If the constraint promises nothing about a weight.
pub fn bound(graph: &Graph, constraint: &ConstraintConfig) -> Result<Upper, Error> {
    let mut weights = HashMap::new();
    for parameter in graph.parameters() {
        let Some(promise) = constraint.cap(&parameter) else { continue };
        let sigma = Upper::from_f64(promise.sigma_max);
        let shape = &parameter.shape;
        let scale = |rows: usize| sigma.over(rms_to_rms(rows, shape[1]).next_down());
        let (whole, head) = match (parameter.geometry, parameter.heads) {
            (Geometry::Matrix, Some(heads)) if promise.per_head => {
                let head = scale(shape[0] / heads.count);
                (head * Upper::from_f64(heads.count as f64).sqrt(), Some(head))
            }
            (Geometry::Matrix, _) => (scale(shape[0]), None),
            (Geometry::Table, _) => (sigma * Upper::from_f64(shape[1] as f64).sqrt(), None),
            (Geometry::Vector, _) => continue,
        };
        weights.insert(parameter.name.clone(), Cap { parameter, whole, head });
    }
    Ok(walk(graph, &Caps { weights }, None)?.rms())
}

/// The largest cap, the same for every matrix, under which the constant is at most `target`.
///
/// # Errors
/// If the constraint has no cap to choose, or no cap in 10⁻⁶…10⁶ will do.
pub fn solve(graph: &Graph, constraint: &ConstraintConfig, target: f64) -> Result<ConstraintConfig> {
    let goal = Upper::from_f64(target);
    let with = |log: f64| constraint.with_sigma_max(10f64.powf(log));
    if with(0.0).is_none() {
        bail!("lipschitz_target needs a constraint with a cap: set constraint.method to one that has sigma_max")
    }
    let fits = |log: f64| -> Result<bool> {
        Ok(match with(log) {
            Some(constraint) => bound(graph, &constraint)? <= goal,
            None => false,
        })
    };
    let (mut low, mut high) = (-6.0, 6.0);
    if !fits(low)? {
        bail!("lipschitz_target {target} cannot be met: even caps of 1e-6 allow more")
    }
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if fits(middle)? { low = middle } else { high = middle }
    }
    with(low).ok_or_else(|| anyhow::anyhow!("the constraint lost its cap"))
}
