//! Classifiers of images or vectors: classes under a change of the input.

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::Model;
use lipschitz_nn::graph::{Input, Shape};

use super::attack::{Attack, Reach, beaten};
use super::cases::largest_norm;
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

/// The radii of published tables: 36, 72 and 108 over 255.
pub const PUBLISHED: [f64; 3] = [EPS_36_255, 72.0 / 255.0, 108.0 / 255.0];

/// Certified, attacked and clean accuracy on images in \[0, 1\], or on vectors. The attack moves an
/// input by an ℓ2 distance of at most ε; an image stays within \[0, 1\]. A tie counts as wrong.
///
/// `batches` gives `(inputs, classes)`, `[batch, channels, height, width]` or `[batch, numbers]`, and
/// u32 `[batch]`. The first [`Settings::limit`] images are evaluated. With batches of [`BATCH`], the
/// random numbers of the attack are comparable between runs. `watch` is called with the radius for
/// each batch.
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
    let shape = shape(model.graph().input())?;
    let inputs = inputs(batches, settings.limit, &shape)?;
    let image = matches!(model.graph().input(), Input::Pixels { .. });
    if image {
        inputs.iter().try_for_each(|(x, _)| pixels(x))?;
    }
    let radius = if image { all_images(&shape) } else { around(&inputs, &settings.eps)? };
    let (walk, margins) = over(&model, radius, settings.search)?;
    inputs.iter().try_for_each(|(_, classes)| known(classes, &model))?;
    let count = inputs.iter().map(|(_, classes)| classes.len()).sum();
    let network = |x: &Tensor| -> Result<Tensor, Error> {
        Ok(model.forward(&x.reshape([&[x.dim(0)?], &shape[..]].concat())?)?)
    };
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
        let attack = Attack {
            network: &network,
            effort: settings.effort,
            reach: Reach::All,
            unit: image,
            linf: false,
        };
        attack_left(&attack, &inputs, eps, &mut broken, watch)?;
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
        unit: match image {
            true => "ℓ2 distance of images with pixels in [0, 1]".into(),
            false => "ℓ2 distance of vectors".into(),
        },
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

/// For each of some ℓ2 distances the share of images that are correctly classified, and proven to stay
/// so within it; `batches` as for [`images`], `search` as [`Settings::search`].
///
/// # Errors
/// If the data does not fit the model.
pub fn certified_accuracy<E: Into<BoxError>>(
    model: &Model,
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    eps: &[f64],
    search: usize,
) -> Result<Vec<f64>, Error> {
    let model = model.to(&Device::Cpu, DType::F64)?;
    let Input::Pixels { channels, height, width } = model.graph().input() else {
        return Err(Error::Data("the model reads no images".into()));
    };
    let (_, margins) = over(&model, all_images(&[channels, height, width]), search)?;
    let mut radii = Vec::new();
    for batch in batches {
        let (x, y) = batch.map_err(|e| Error::Batch(e.into()))?;
        let x = x.to_dtype(DType::F64)?;
        pixels(&x)?;
        let logits = model.forward(&x)?.to_vec2::<f64>()?;
        let classes: Vec<usize> =
            y.to_vec1::<u32>()?.into_iter().map(|class| class as usize).collect();
        known(&classes, &model)?;
        let radius = |(z, class): (&Vec<f64>, usize)| margins.radius(z, class);
        radii.extend(logits.iter().zip(classes).map(radius));
    }
    Ok(eps.iter().map(|eps| above(&radii, *eps)).collect())
}

/// The constants of the differences of two outputs, on all images or all vectors, proven by norms
/// alone.
///
/// # Errors
/// A network that reads tokens or names no class, or whose weights are not finite.
pub fn constants(model: &Model) -> Result<Margins, Error> {
    names_classes(model)?;
    let shape = shape(model.graph().input())?;
    let image = matches!(model.graph().input(), Input::Pixels { .. });
    let norms = WeightNorms::new(model, Method::Proven, &|_| {});
    let walk = walk(model.graph(), &norms, image.then(|| all_images(&shape)))?;
    Margins::new(model.graph(), &walk, &norms, None)
}

/// The shape of an input.
fn shape(input: Input) -> Result<Vec<usize>, Error> {
    match input {
        Input::Pixels { channels, height, width } => Ok(vec![channels, height, width]),
        Input::Vector { dim } => Ok(vec![dim]),
        Input::Tokens { .. } => Err(Error::Data("the model reads no images".into())),
    }
}

/// The radius of the ball around zero that contains all images.
fn all_images(shape: &[usize]) -> Upper {
    Upper::from_f64(shape.iter().product::<usize>() as f64).sqrt()
}

/// The radius of a ball around zero that contains all points within the largest of these distances of
/// the inputs.
fn around(inputs: &[(Tensor, Vec<usize>)], eps: &[f64]) -> Result<Upper, Error> {
    let reach = eps.iter().copied().fold(0.0, f64::max);
    Ok(largest_norm(inputs)? + Upper::from_f64(reach))
}

fn names_classes(model: &Model) -> Result<(), Error> {
    match model.graph().output() {
        Shape::Vector(_) => Ok(()),
        _ => {
            let what = "the model gives outputs for parts of an image, so it names no class";
            Err(Error::Data(what.into()))
        }
    }
}

/// The bounds on a ball around zero, and the margins, with a `search` of so many steps for a proof by
/// ellipsoids.
fn over(model: &Model, radius: Upper, search: usize) -> Result<(Walk, Margins), Error> {
    names_classes(model)?;
    let norms = WeightNorms::new(model, Method::Proven, &|_| {});
    let mut walk = walk(model.graph(), &norms, Some(radius))?;
    let ellipsoids = ellipsoid::tighten(model, walk.domain, Aim::Pairs, search, &mut |_, _| {})?;
    let margins = Margins::new(model.graph(), &walk, &norms, ellipsoids.as_ref())?;
    if let Some(ellipsoids) = &ellipsoids {
        walk.lipschitz = walk.lipschitz.min(ellipsoids.bound.l2);
    }
    Ok((walk, margins))
}

/// Whether the model has an output for each of the classes.
fn known(classes: &[usize], model: &Model) -> Result<(), Error> {
    let outputs = model.graph().outputs();
    match classes.iter().find(|class| **class >= outputs) {
        Some(class) => Err(Error::Data(format!(
            "an input is of class {class}, and the model's {outputs} classes are numbered from 0"
        ))),
        None => Ok(()),
    }
}

/// Whether pixels lie where the attack stays, and where rounding is bounded.
fn pixels(x: &Tensor) -> Result<(), Error> {
    let of = |x: Tensor| x.to_scalar::<f64>();
    let (least, most) = (of(x.flatten_all()?.min(0)?)?, of(x.flatten_all()?.max(0)?)?);
    if least >= 0.0 && most <= 1.0 {
        return Ok(());
    }
    Err(Error::Data(format!(
        "images hold pixels from {least} to {most}, and a radius is one of pixels in [0, 1]: scale \
         them, and put a mean and a deviation into the first map"
    )))
}

/// The first `limit` inputs as rows `[batch, 1, numbers]` in f64 with their classes.
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
            let word =
                |shape: &[usize]| shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
            let (found, wanted) = (word(x.dims().get(1..).unwrap_or_default()), word(shape));
            let what = format!("inputs are {found}, and the model reads {wanted}");
            return Err(Error::Data(what));
        }
        let take = x.dim(0)?.min(limit - count);
        let x = x.narrow(0, 0, take)?.to_dtype(DType::F64)?.reshape((take, 1, ()))?;
        let classes = y.to_vec1::<u32>()?.into_iter().take(take).map(|class| class as usize);
        out.push((x, classes.collect()));
        count += take;
    }
    match count {
        0 => Err(Error::Data("there are no inputs to look at".into())),
        _ => Ok(out),
    }
}
