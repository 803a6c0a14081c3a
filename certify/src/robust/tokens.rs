//! Language models: next tokens under a change of embedding vectors.

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::Model;
use lipschitz_nn::graph::{Input, join};

use super::attack::{Attack, Reach, beaten};
use super::margins::{Margins, largest};
use super::{
    BoxError, Robustness, Settings, Share, Shares, above, attack_left, check, curve, ordered,
    share, sorted,
};
use crate::Error;
use crate::bound::{Block, Norm, Norms, Walk, WeightNorms, walk};
use crate::spectral::Method;
use crate::upper::Upper;

/// Windows worked on at once.
pub const WINDOWS: usize = 50;

/// The windows that [`tokens`] looks at: as long as the network reads, up to 64 tokens.
///
/// # Errors
/// [`Error::Data`] if it reads no tokens.
pub fn window(model: &Model) -> Result<usize, Error> {
    const LONGEST: usize = 64;
    let context = model.graph().context();
    context.map(|context| context.min(LONGEST)).ok_or_else(no_tokens)
}

fn no_tokens() -> Error {
    Error::Data("the model reads no tokens".into())
}

/// Next tokens: the share that stays the same when embedding vectors move by an ℓ2 distance of at
/// most r, those of all tokens or of one alone. The certificate's norm is the largest of a token,
/// so its share holds for both. One prediction a window, behind its last token; windows that lie
/// within one document, as those with a separator inside are another function of their embeddings.
/// `watch` hears the radius at work.
///
/// # Errors
/// [`Error::Violated`] if an attack changes a prediction that is proven to stay; others if the data
/// does not fit the model.
pub fn tokens<E: Into<BoxError>>(
    model: &Model,
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    settings: &Settings,
    watch: &dyn Fn(f64),
) -> Result<Robustness, Error> {
    let length = window(model)?;
    let model = model.to(&Device::Cpu, DType::F64)?;
    let table = Block::whole(join(&model.graph().nodes()[0].name, "weight"));
    let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
    let (domain, diameter) =
        (norms.norm(&Norm::Row(table.clone()))?, norms.norm(&Norm::RowDifference(table))?);
    let network = |x: &Tensor| -> Result<Tensor, Error> {
        let y = model.forward_embeddings(x)?;
        Ok(y.narrow(1, y.dim(1)? - 1, 1)?.squeeze(1)?)
    };
    let separator =
        if let Input::Tokens { separator, .. } = model.graph().input() { separator } else { None };
    // The windows that are whole, and what is predicted behind each.
    let (mut inputs, mut logits, mut available) = (Vec::new(), Vec::new(), 0);
    for batch in batches {
        let (x, _) = batch.map_err(|e| Error::Batch(e.into()))?;
        if x.dim(1)? != length {
            continue;
        }
        let whole = one_document(&x, separator)?;
        available += whole.len();
        let take = whole.len().min(settings.limit.saturating_sub(logits.len()));
        if take == 0 {
            continue;
        }
        let x = x.index_select(&Tensor::new(&whole[..take], &Device::Cpu)?, 0)?;
        let x = model.embed(&x)?.detach();
        let z = network(&x)?.to_vec2::<f64>()?;
        let classes = z.iter().map(|z| largest(z).map_or(0, |(class, _)| class)).collect();
        logits.extend(z);
        inputs.push((x, classes));
    }
    let classes: Vec<usize> =
        inputs.iter().flat_map(|(_, classes): &(Tensor, Vec<usize>)| classes.clone()).collect();
    if classes.is_empty() {
        let what = format!(
            "the held-out split holds no window of {length} tokens within one document; give more \
             text"
        );
        return Err(Error::Data(what));
    }
    let radii_at = |eps: f64| -> Result<(Walk, Vec<f64>), Error> {
        let walk = walk(model.graph(), &norms, Some(domain + Upper::from_f64(eps)))?;
        let margins = Margins::new(&walk, &norms)?;
        let radii =
            logits.iter().zip(&classes).map(|(z, class)| margins.radius(z, *class)).collect();
        Ok((walk, radii))
    };
    let start: Vec<bool> =
        logits.iter().zip(&classes).map(|(z, class)| beaten(z, *class)).collect();
    let (clean, mut one, mut all) = (share(&start), start.clone(), start);
    let (mut rows, mut lipschitz) = (Vec::new(), None);
    for eps in sorted(&settings.eps) {
        watch(eps);
        let (walk, radii) = radii_at(eps)?;
        // Radii grow, and with them the domain and its constant.
        lipschitz = Some(walk.lipschitz);
        let mut attack =
            Attack { network: &network, effort: settings.effort, reach: Reach::One, unit: false };
        attack_left(&attack, &inputs, eps, &mut one)?;
        // What moves one token is allowed to move all.
        all.iter_mut().zip(&one).for_each(|(all, one)| *all |= one);
        attack.reach = Reach::All;
        attack_left(&attack, &inputs, eps, &mut all)?;
        check(&all, &radii, eps)?;
        let attacked_one = Some(share(&one));
        rows.push(Shares {
            eps,
            clean,
            attacked_one,
            attacked: share(&all),
            certified: above(&radii, eps),
        });
    }
    ordered(&rows)?;
    let curve = curve(&rows, |eps| Ok(above(&radii_at(eps)?.1, eps)))?;
    Ok(Robustness {
        label: String::new(),
        of: Share::Stability,
        unit: "ℓ2 distance of an embedding vector".into(),
        inputs: classes.len(),
        available,
        lipschitz: lipschitz.unwrap_or(Upper::INFINITY),
        domain,
        diameter: Some(diameter),
        steps: settings.effort.steps,
        restarts: settings.effort.restarts,
        curve,
        rows,
    })
}

/// The windows of token ids `[windows, tokens]` in which no document begins behind the first token.
fn one_document(ids: &Tensor, separator: Option<u32>) -> Result<Vec<u32>, Error> {
    let rows = ids.to_dtype(DType::U32)?.to_vec2::<u32>()?;
    let whole = |row: &Vec<u32>| separator.is_none_or(|separator| !row[1..].contains(&separator));
    Ok((0..).zip(&rows).filter(|(_, row)| whole(row)).map(|(i, _)| i).collect())
}
