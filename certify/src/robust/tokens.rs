//! Language models: next tokens under a change of embedding vectors.

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::Model;
use lipschitz_nn::graph::{Input, Shape, join};

use super::attack::{Attack, Reach, beaten};
use super::cases::outputs;
use super::margins::{Margins, largest};
use super::{
    BoxError, Robustness, Settings, Share, Shares, above, attack_left, check, curve, ordered,
    share, sorted,
};
use crate::Error;
use crate::bound::{Block, Norm, Norms, Walk, WeightNorms, walk};
use crate::ellipsoid::{self, Aim};
use crate::spectral::Method;
use crate::upper::Upper;

/// Windows per batch.
pub const WINDOWS: usize = 50;

/// The length of the windows that [`tokens`] evaluates: the context of the network, up to 64
/// tokens.
///
/// # Errors
/// [`Error::Data`] if the network reads no tokens.
pub fn window(model: &Model) -> Result<usize, Error> {
    const LONGEST: usize = 64;
    let context = model.graph().context();
    context.map(|context| context.min(LONGEST)).ok_or_else(no_tokens)
}

fn no_tokens() -> Error {
    Error::Data("the model reads no tokens".into())
}

/// Next tokens: the share of predictions that do not change when embedding vectors move by an ℓ2
/// distance of at most r, those of all tokens or of one token. The norm of a sequence is the
/// largest norm of a token, so the certified share holds for both.
///
/// There is one prediction per window, after its last token. Only windows within one document are
/// evaluated: with a separator inside, the network is another function of the embeddings. `watch`
/// is called with each radius.
///
/// # Errors
/// [`Error::Violated`] if an attack changes a certified prediction; others if the data does not fit
/// the model.
pub fn tokens<E: Into<BoxError>>(
    model: &Model,
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    settings: &Settings,
    watch: &dyn Fn(f64),
) -> Result<Robustness, Error> {
    let length = window(model)?;
    if !matches!(model.graph().output(), Shape::Tokens(_)) {
        let what = "the model gives one output for a whole text, so it predicts no next tokens";
        return Err(Error::Data(what.into()));
    }
    let model = model.to(&Device::Cpu, DType::F64)?;
    let table = Block::whole(join(&model.graph().nodes()[0].name, "weight"));
    let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
    let domain = norms.norm(&Norm::Row(table.clone()))?;
    let diameter = norms.norm(&Norm::RowDifference(table))?;
    let predictions = predictions(&model, batches, Some(length), settings.limit)?;
    let Predictions { inputs, logits, classes, available } = &predictions;
    // Ellipsoids on the largest domain hold on all others.
    let farthest = settings.eps.iter().fold(0.0, |m: f64, eps| m.max(*eps));
    let largest_domain = domain + Upper::from_f64(farthest);
    let ellipsoids =
        ellipsoid::tighten(&model, largest_domain, Aim::Pairs, settings.search, &mut |_, _| {})?;
    let proven_at = |eps: f64| -> Result<(Walk, Vec<f64>), Error> {
        let mut walk = walk(model.graph(), &norms, Some(domain + Upper::from_f64(eps)))?;
        let margins = Margins::new(model.graph(), &walk, &norms, ellipsoids.as_ref())?;
        if let Some(ellipsoids) = &ellipsoids {
            walk.lipschitz = walk.lipschitz.min(ellipsoids.bound.l2);
        }
        let radii = logits.iter().zip(classes).map(|(z, class)| margins.radius(z, *class));
        let radii = radii.collect();
        Ok((walk, radii))
    };
    let network = |x: &Tensor| outputs(&model, x);
    let start: Vec<bool> = logits.iter().zip(classes).map(|(z, class)| beaten(z, *class)).collect();
    let (clean, mut one, mut all) = (share(&start), start.clone(), start);
    let (mut rows, mut lipschitz) = (Vec::new(), None);
    for eps in sorted(&settings.eps) {
        let (walk, radii) = proven_at(eps)?;
        // Radii increase, and with them the domain and its constant.
        lipschitz = Some(walk.lipschitz);
        let mut attack = Attack {
            network: &network,
            effort: settings.effort,
            reach: Reach::One,
            unit: false,
            linf: false,
        };
        attack_left(&attack, inputs, eps, &mut one, watch)?;
        // A change of one token is also a change of all tokens.
        all.iter_mut().zip(&one).for_each(|(all, one)| *all |= one);
        attack.reach = Reach::All;
        attack_left(&attack, inputs, eps, &mut all, watch)?;
        check(&all, &radii, eps)?;
        rows.push(Shares {
            eps,
            clean,
            attacked_one: Some(share(&one)),
            attacked: share(&all),
            certified: above(&radii, eps),
        });
    }
    ordered(&rows)?;
    let curve = curve(&rows, |eps| Ok(above(&proven_at(eps)?.1, eps)))?;
    Ok(Robustness {
        label: String::new(),
        of: Share::Stability,
        unit: "ℓ2 distance of an embedding vector".into(),
        inputs: classes.len(),
        available: *available,
        lipschitz: lipschitz.unwrap_or(Upper::INFINITY),
        domain,
        diameter: Some(diameter),
        steps: settings.effort.steps,
        restarts: settings.effort.restarts,
        curve,
        rows,
    })
}

/// The windows that are evaluated, and what is predicted after each.
pub(super) struct Predictions {
    /// Batches of embedding vectors `[batch, tokens, dim]`, with the predicted tokens.
    pub(super) inputs: Vec<(Tensor, Vec<usize>)>,
    /// Logits of all windows.
    logits: Vec<Vec<f64>>,
    /// Predicted tokens of all windows.
    classes: Vec<usize>,
    /// Windows within one document, those after the first `limit` too.
    available: usize,
}

/// Predictions after the first `limit` windows that lie within one document: those of `length` tokens,
/// if that is given.
pub(super) fn predictions<E: Into<BoxError>>(
    model: &Model,
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    length: Option<usize>,
    limit: usize,
) -> Result<Predictions, Error> {
    let separator =
        if let Input::Tokens { separator, .. } = model.graph().input() { separator } else { None };
    let (mut inputs, mut logits, mut available) = (Vec::new(), Vec::new(), 0);
    for batch in batches {
        let (x, _) = batch.map_err(|e| Error::Batch(e.into()))?;
        if length.is_some_and(|length| x.dim(1).ok() != Some(length)) {
            continue;
        }
        let whole = one_document(&x, separator)?;
        available += whole.len();
        let take = whole.len().min(limit.saturating_sub(logits.len()));
        if take == 0 {
            continue;
        }
        let x = x.index_select(&Tensor::new(&whole[..take], &Device::Cpu)?, 0)?;
        let x = model.embed(&x)?.detach();
        let z = outputs(model, &x)?.to_vec2::<f64>()?;
        let classes: Vec<usize> =
            z.iter().map(|z| largest(z).map_or(0, |(class, _)| class)).collect();
        logits.extend(z);
        inputs.push((x, classes));
    }
    let classes: Vec<usize> =
        inputs.iter().flat_map(|(_, classes)| classes.iter().copied()).collect();
    if classes.is_empty() {
        let what = format!(
            "the held-out split holds no window{} within one document; give more text",
            length.map_or(String::new(), |length| format!(" of {length} tokens"))
        );
        return Err(Error::Data(what));
    }
    Ok(Predictions { inputs, logits, classes, available })
}

/// The token ids of the first `limit` windows that lie within one document.
///
/// # Errors
/// [`Error::Data`] if the model reads no tokens or the data holds no window; those of the data.
pub(crate) fn windows<E: Into<BoxError>>(
    model: &Model,
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    limit: usize,
) -> Result<Vec<Vec<u32>>, Error> {
    let Input::Tokens { separator, .. } = model.graph().input() else { return Err(no_tokens()) };
    let mut out: Vec<Vec<u32>> = Vec::new();
    for batch in batches {
        let (x, _) = batch.map_err(|e| Error::Batch(e.into()))?;
        let rows = x.to_dtype(DType::U32)?.to_vec2::<u32>()?;
        for i in one_document(&x, separator)? {
            if out.len() == limit {
                return Ok(out);
            }
            out.push(rows[i as usize].clone());
        }
    }
    match out.is_empty() {
        true => Err(Error::Data("the held-out split holds no window within one document".into())),
        false => Ok(out),
    }
}

/// The indices of windows of token ids `[windows, tokens]` in which no document begins after the
/// first token.
fn one_document(ids: &Tensor, separator: Option<u32>) -> Result<Vec<u32>, Error> {
    let rows = ids.to_dtype(DType::U32)?.to_vec2::<u32>()?;
    let whole = |row: &Vec<u32>| {
        separator.is_none_or(|separator| !row.iter().skip(1).any(|id| *id == separator))
    };
    Ok((0..).zip(&rows).filter(|(_, row)| whole(row)).map(|(i, _)| i).collect())
}
