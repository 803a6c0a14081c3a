//! Image classifiers: classes under a change of pixels.

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::Model;
use lipschitz_nn::graph::{Input, Shape};

use super::attack::{Attack, Reach, beaten};
use super::margins::Margins;
use super::{
    BoxError, Robustness, Settings, Share, Shares, above, attack_left, check, curve, ordered,
    share, sorted,
};
use crate::Error;
use crate::bound::{Walk, WeightNorms, walk};
use crate::ellipsoid::{self, Aim};
use crate::spectral::Method;
use crate::upper::Upper;

/// Images per batch.
pub const BATCH: usize = 250;

/// The radius at which certified accuracies on CIFAR-10 are usually compared: 36/255, with pixels
/// in \[0, 1\].
pub const EPS_36_255: f64 = 36.0 / 255.0;

/// Certified, attacked and clean accuracy on images in \[0, 1\]. The attack moves an image by an ℓ2
/// distance of at most ε and stays within \[0, 1\]. A tie counts as wrong.
///
/// `batches` gives `(images, classes)`, `[batch, channels, height, width]` and u32 `[batch]`. The
/// first [`Settings::limit`] images are evaluated. With batches of [`BATCH`], the random numbers of
/// the attack are comparable between runs. `watch` is called with each radius.
///
/// # Errors
/// [`Error::Violated`] if an attack changes a certified prediction; others if the data does not fit
/// the model.
pub fn images<E: Into<BoxError>>(
    model: &Model,
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    available: usize,
    settings: &Settings,
    watch: &dyn Fn(f64),
) -> Result<Robustness, Error> {
    let model = model.to(&Device::Cpu, DType::F64)?;
    let (shape, walk, margins) = over_images(&model, settings.search)?;
    let inputs = inputs(batches, settings.limit, &shape)?;
    inputs.iter().try_for_each(|(_, classes)| known(classes, &model))?;
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
        let attack = Attack {
            network: &network,
            effort: settings.effort,
            reach: Reach::All,
            unit: true,
            linf: false,
        };
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

/// The share of images that are correctly classified, and proven to stay so within ℓ2 distance
/// `eps`; `batches` as for [`images`].
///
/// # Errors
/// If the data does not fit the model.
pub fn certified_accuracy<E: Into<BoxError>>(
    model: &Model,
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    eps: f64,
) -> Result<f64, Error> {
    let model = model.to(&Device::Cpu, DType::F64)?;
    let (_, _, margins) = over_images(&model, ellipsoid::usual_steps(model.graph()))?;
    let mut radii = Vec::new();
    for batch in batches {
        let (x, y) = batch.map_err(|e| Error::Batch(e.into()))?;
        let logits = model.forward(&x.to_dtype(DType::F64)?)?.to_vec2::<f64>()?;
        let classes: Vec<usize> =
            y.to_vec1::<u32>()?.into_iter().map(|class| class as usize).collect();
        known(&classes, &model)?;
        let radius = |(z, class): (&Vec<f64>, usize)| margins.radius(z, class);
        radii.extend(logits.iter().zip(classes).map(radius));
    }
    Ok(above(&radii, eps))
}

/// The shape of the model's images, the bounds on the ball that contains all of them, and the
/// margins, with a `search` of so many steps for a proof by ellipsoids.
fn over_images(model: &Model, search: usize) -> Result<([usize; 3], Walk, Margins), Error> {
    let Input::Pixels { channels, height, width } = model.graph().input() else {
        return Err(Error::Data("the model reads no images".into()));
    };
    if !matches!(model.graph().output(), Shape::Vector(_)) {
        let what = "the model gives outputs for parts of an image, so it names no class";
        return Err(Error::Data(what.into()));
    }
    let norms = WeightNorms::new(model, Method::Proven, &|_| {});
    let radius = Upper::from_f64((channels * height * width) as f64).sqrt();
    let mut walk = walk(model.graph(), &norms, Some(radius))?;
    let ellipsoids = ellipsoid::tighten(model, walk.domain, Aim::Pairs, search, &mut |_, _| {})?;
    let margins = Margins::new(model.graph(), &walk, &norms, ellipsoids.as_ref())?;
    if let Some(ellipsoids) = &ellipsoids {
        walk.lipschitz = walk.lipschitz.min(ellipsoids.bound.l2);
    }
    Ok(([channels, height, width], walk, margins))
}

/// Whether the model has an output for each of the classes.
fn known(classes: &[usize], model: &Model) -> Result<(), Error> {
    let outputs = model.graph().outputs();
    match classes.iter().find(|class| **class >= outputs) {
        Some(class) => Err(Error::Data(format!(
            "an image is of class {class}, and the model's {outputs} classes are numbered from 0"
        ))),
        None => Ok(()),
    }
}

/// The first `limit` images or vectors as rows `[batch, 1, elements]` in f64 with their classes.
pub(super) fn inputs<E: Into<BoxError>>(
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    limit: usize,
    shape: &[usize],
) -> Result<Vec<(Tensor, Vec<usize>)>, Error> {
    let (mut out, mut count) = (Vec::new(), 0);
    for batch in batches {
        if count == limit {
            break;
        }
        let (x, y) = batch.map_err(|e| Error::Batch(e.into()))?;
        // Images of another size are another question: nothing here changes their size.
        if x.dims().get(1..) != Some(shape) {
            let text =
                |dims: &[usize]| dims.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
            let found = text(x.dims().get(1..).unwrap_or_default());
            let what = format!("images are {found}, and the model reads {}", text(shape));
            return Err(Error::Data(what));
        }
        let take = x.dim(0)?.min(limit - count);
        let x = x.narrow(0, 0, take)?.to_dtype(DType::F64)?.reshape((take, 1, ()))?;
        let classes = y.to_vec1::<u32>()?.into_iter().take(take).map(|class| class as usize);
        out.push((x, classes.collect()));
        count += take;
    }
    match count {
        0 => Err(Error::Data("there are no images to look at".into())),
        _ => Ok(out),
    }
}
