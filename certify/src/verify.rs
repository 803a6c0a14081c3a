//! Proves a certificate again, trusting nothing in it.
//!
//! Every norm of a weight is proven from the checkpoint. Then bounds are propagated through the
//! graph with the norms that the certificate states. This must give every other number, bit for
//! bit: the arithmetic of bound propagation is the same on every machine.

use lipschitz_nn::graph::NodeId;
use serde_json::Value;

use crate::Error;
use crate::bound::{SLACK, WeightRow};
use crate::certificate::{
    Certificate, FORMAT, Formula, Known, Stated, TOGETHER, document, prove, theorem,
};
use crate::ellipsoid::{self, EllipsoidBound, Weights};
use crate::pinned::Pinned;
use crate::source::{Rounded, Source};
use crate::upper::Upper;

/// The largest relative amount by which a published norm may be looser than needed.
const LOOSE: f64 = 1e-6;

/// Proves a certificate again from the weights of a network.
///
/// # Errors
/// [`Error::Violated`] names the first number or text that does not hold; otherwise as
/// [`certify`](crate::certificate::certify).
pub fn verify(claim: &Certificate, source: &dyn Source) -> Result<(), Error> {
    if !(1..=FORMAT).contains(&claim.format) {
        let found = claim.format;
        return Err(violated(format!(
            "format {found}: this version verifies formats 1 to {FORMAT}; make a new certificate"
        )));
    }
    if !is_version(&claim.version) {
        return Err(violated("version: is not that of a release, such as 0.1.0".into()));
    }
    let rounded = claim.rounding.map(|to| Rounded { source, to });
    let source = rounded.as_ref().map_or(source, |rounded| rounded as &dyn Source);
    if claim.graph != *source.graph() {
        return Err(violated("graph: is not that of the checkpoint".into()));
    }
    let source = &Pinned::new(source)?;
    let weights = source.digest();
    if claim.weights_sha256 != weights {
        let found = &claim.weights_sha256;
        return Err(violated(format!(
            "weights_sha256: the checkpoint's weights have {weights}, not {found}"
        )));
    }
    let given = claim.domain.given.then_some(claim.domain.radius);
    if given.is_some_and(|radius| {
        !(Upper::ZERO < radius
            && Upper::from_f64(radius.to_f64()) == radius
            && radius < Upper::INFINITY)
    }) {
        return Err(violated("domain.radius: is not a number that can be given".into()));
    }
    let radius = given.map(Upper::to_f64);
    let again = prove(source, claim.format, claim.method, claim.formula, radius, &|_| {})?;
    for (i, proven) in again.weights.iter().enumerate() {
        let stated = claim.weights.get(i).filter(|stated| stated.name == proven.name);
        let stated = stated.ok_or_else(|| {
            violated(format!("weights[{i}]: the norm of {} is missing", proven.name))
        })?;
        holds(stated, proven)
            .map_err(|what| violated(format!("weights[{i}], {}: {what}", stated.name)))?;
    }
    if claim.weights.len() > again.weights.len() {
        return Err(violated(format!(
            "weights[{}]: is no norm that the proof uses",
            again.weights.len()
        )));
    }
    let known = Known { norms: &Stated(&claim.weights), format: claim.format };
    let theorem = theorem(&claim.graph, &known, claim.formula, given)?;
    if let Some(stated) = &claim.ellipsoids {
        if claim.formula != Formula::Sound || !claim.method.is_bound() {
            return Err(violated("ellipsoids: there are none beside an estimate".into()));
        }
        by_ellipsoids(stated, source, theorem.walk.domain)?;
    }
    let implied = document(
        source,
        claim.method,
        claim.formula,
        given.is_some(),
        theorem,
        claim.weights.clone(),
        claim.ellipsoids.clone(),
    )?;
    // The certificate may have been written by another version, and before nodes had ids.
    let mut implied = Certificate { version: claim.version.clone(), ..implied };
    implied.format = match (claim.format, &claim.ellipsoids) {
        (TOGETHER.., _) => claim.format,
        (_, Some(_)) => 3,
        (1, None) => 1,
        (_, None) => 2,
    };
    if implied.format == 1 {
        implied.nodes.iter_mut().for_each(|row| row.id = NodeId::default());
    }
    let value = |c: &Certificate| {
        serde_json::to_value(c).map_err(|e| violated(format!("cannot be compared: {e}")))
    };
    match difference(&value(claim)?, &value(&implied)?, String::new()) {
        Some(what) => Err(violated(what)),
        None => Ok(()),
    }
}

/// Proves a bound by ellipsoids again, with the stated multipliers and without a search.
fn by_ellipsoids(stated: &EllipsoidBound, source: &dyn Source, domain: Upper) -> Result<(), Error> {
    let weights = Weights::new(source, false);
    let again = ellipsoid::prove(source.graph(), &weights, domain, &stated.multipliers)?;
    let Some(again) = again.map(|again| again.bound) else {
        return Err(violated("ellipsoids.multipliers: prove nothing about this network".into()));
    };
    let ids = |bound: &EllipsoidBound| -> Vec<NodeId> {
        bound.nodes.iter().map(|row| row.id.clone()).collect()
    };
    if ids(stated) != ids(&again) {
        return Err(violated("ellipsoids.nodes: are not those of the outermost level".into()));
    }
    let rows = stated.nodes.iter().zip(&again.nodes).enumerate();
    let rows = rows.map(|(i, (a, b))| (format!("nodes[{i}]"), a.cumulative, b.cumulative));
    let whole = [
        ("l2".to_string(), stated.l2, again.l2),
        ("logit".to_string(), stated.logit, again.logit),
        ("margin".to_string(), stated.margin, again.margin),
    ];
    for (what, stated, again) in whole.into_iter().chain(rows) {
        at_least(stated, again).map_err(|e| violated(format!("ellipsoids.{what}: {e}")))?;
    }
    Ok(())
}

/// Whether a text is the version of a release: it is the one text of a certificate that the proof
/// does not give.
fn is_version(text: &str) -> bool {
    let mut numbers = text.split('.');
    let number = |part: &str| {
        (1..=5).contains(&part.len()) && part.bytes().all(|digit| digit.is_ascii_digit())
    };
    numbers.by_ref().take(3).filter(|part| number(part)).count() == 3 && numbers.next().is_none()
}

fn violated(what: String) -> Error {
    Error::Violated(format!("the certificate does not hold: {what}"))
}

/// Whether a stated upper bound is proven by a fresh one, which is [`SLACK`] looser than what was
/// proven, and not much looser itself.
fn at_least(stated: Upper, again: Upper) -> Result<(), String> {
    let factor = |share: f64| Upper::from_f64(1.0 + share);
    let (said, proven) = (stated.to_f64(), again.to_f64());
    if stated * factor(0.5 * SLACK) < again {
        return Err(format!("at most {said:.12e} is stated, and only {proven:.12e} can be proven"));
    }
    if stated > again * factor(LOOSE) {
        return Err(format!("at most {said:.12e} is stated, and {proven:.12e} was to be"));
    }
    Ok(())
}

/// Whether a stated row is proven by a fresh one, `again`, whose ends are [`SLACK`] looser than
/// what was proven.
fn holds(stated: &WeightRow, again: &WeightRow) -> Result<(), String> {
    let lower = again.lower;
    at_least(stated.upper, again.upper)?;
    if stated.lower.is_nan() || stated.lower > lower * (1.0 + 0.5 * SLACK) {
        return Err(format!(
            "at least {:.12e} is stated, and only {lower:.12e} can be shown",
            stated.lower
        ));
    }
    if stated.lower < lower * (1.0 - LOOSE) {
        return Err(format!(
            "at least {:.12e} is stated, and {lower:.12e} was to be",
            stated.lower
        ));
    }
    if stated.method != again.method {
        return Err(format!("{} is stated, and {} was used", stated.method, again.method));
    }
    Ok(())
}

/// The first place where two documents differ.
fn difference(stated: &Value, implied: &Value, path: String) -> Option<String> {
    match (stated, implied) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            let below =
                |key: &String| if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            a.iter().find_map(|(key, value)| difference(value, &b[key], below(key)))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find_map(|(i, (a, b))| difference(a, b, format!("{path}[{i}]"))),
        _ if stated == implied => None,
        _ => Some(format!("{path}: {stated} is stated, and the weights' norms give {implied}")),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use lipschitz_nn::graph::{Attention, Graph, Input, Node, Op};
    use lipschitz_nn::{Model, random};

    use super::*;
    use crate::spectral::Method;

    /// Before format 4, attention had no rule for the norm of all tokens: what was proven without it
    /// holds, and is not taken for what is proven with it.
    #[test]
    fn a_certificate_is_verified_by_the_proof_of_its_format() {
        let nodes = vec![
            Node::new("", Op::Clip { limit: 0.2 }),
            Node::new("", Op::Patches { size: 1 }),
            Node::new("a", Op::Attention(Attention { causal: false, ..Attention::new(4, 2, 2) })),
            Node::new("", Op::MeanPool),
            Node::new("head", Op::Linear { inputs: 4, outputs: 3, bias: false }),
        ];
        let pixels = Input::Pixels { channels: 4, height: 2, width: 3 };
        let graph = Graph::new(pixels, nodes).unwrap();
        let mut rng = random::seeded(3);
        let weights = graph.parameters().into_iter().map(|p| {
            let values = random::normals(&mut rng, p.shape.iter().product());
            (p.name, Tensor::from_vec(values, p.shape, &Device::Cpu).unwrap())
        });
        let model = Model::new(graph.clone(), weights.collect()).unwrap();
        let of = |format| {
            let source = Pinned::new(&model).unwrap();
            let made = prove(&source, format, Method::Proven, Formula::Sound, None, &|_| {});
            Certificate { format, ..made.unwrap() }
        };
        let (old, new) = (of(2), of(FORMAT));
        assert!(new.l2 < old.l2, "{} {}", new.l2, old.l2);
        verify(&old, &model).unwrap();
        verify(&new, &model).unwrap();
        for wrong in [Certificate { format: FORMAT, ..old }, Certificate { format: 2, ..new }] {
            let said = verify(&wrong, &model).unwrap_err().to_string();
            assert!(said.contains("weights["), "{said}");
        }
    }
}
