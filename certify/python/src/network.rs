//! Networks: from a path, or a graph with arrays.

use std::path::PathBuf;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use lipschitz_certify::certificate::{self, Certificate, Formula};
use lipschitz_certify::local::{self, Distance};
use lipschitz_certify::robust::{self, Effort, Settings};
use lipschitz_certify::source::Source;
use lipschitz_certify::spectral::Method;
use lipschitz_certify::upper::Upper;
use lipschitz_certify::{ellipsoid, probe, verify};
use lipschitz_nn::checkpoint::{self, Dialect, FORMAT, Meta, Origin, Provenance};
use lipschitz_nn::graph::Input;
use lipschitz_nn::{Graph, Model, Weights, strict};
use pyo3::prelude::*;
use serde_json::json;

use crate::arrays::tensor;
use crate::interrupt::{Read, Stop, interruptible};
use crate::raised;

/// A network that something is to be proven about.
#[pyclass(frozen, module = "lipschitz._lipschitz")]
pub(crate) struct Network {
    held: Held,
}

enum Held {
    /// At a path, read again for each proof.
    At(PathBuf),
    /// In memory.
    Given(Box<Model>, Box<Meta>),
}

#[pymethods]
impl Network {
    /// The network at a path: a run directory, a checkpoint, or a third-party model.
    #[staticmethod]
    fn open(path: PathBuf) -> Self {
        Self { held: Held::At(path) }
    }

    /// A graph as JSON, with an array for each of its weights; `note` says where they come from.
    #[staticmethod]
    fn of(graph: &str, weights: Vec<(String, Bound<'_, PyAny>)>, note: String) -> PyResult<Self> {
        let graph = Graph::from_json(graph).map_err(raised)?;
        let weights: Weights = weights
            .into_iter()
            .map(|(name, array)| Ok((name.clone(), tensor(&name, &array)?)))
            .collect::<PyResult<_>>()?;
        let model = Model::new(graph.clone(), weights).map_err(raised)?;
        model.check_finite().map_err(raised)?;
        let origin = Origin {
            family: "graph".into(),
            dialect: Dialect::Original,
            library: None,
            notes: vec![note],
            weights: Vec::new(),
            unused: Vec::new(),
        };
        let provenance = Provenance { origin: Some(origin), ..Provenance::default() };
        let config = serde_json::Value::Null;
        let classes = Vec::new();
        let meta = Meta { format: FORMAT, graph, config, tokenizer: None, classes, provenance };
        Ok(Self { held: Held::Given(Box::new(model), Box::new(meta)) })
    }

    /// Writes the network as a checkpoint.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| {
            let (model, meta) = self.model()?;
            checkpoint::save(&path, &model, &meta).map_err(raised)
        })
    }

    /// The graph as JSON.
    fn graph(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| self.with(|source| Ok(serde_json::to_string_pretty(source.graph())?)))
    }

    /// The certificate as JSON, with a search of so many steps for a smaller constant.
    #[pyo3(signature = (effort=None, radius=None))]
    fn certify(
        &self,
        py: Python<'_>,
        effort: Option<usize>,
        radius: Option<f64>,
    ) -> PyResult<String> {
        if radius.is_some_and(|radius| !(radius.is_finite() && radius > 0.0)) {
            return Err(crate::Error::new_err("radius: must be a number above 0"));
        }
        interruptible(py, |stop| {
            self.with(|source| {
                let found = proven(&Read { source, stop }, effort, radius, stop)?;
                Ok(serde_json::to_string_pretty(&found)?)
            })
        })
    }

    /// Proves a certificate again, trusting nothing in it.
    fn verify(&self, py: Python<'_>, certificate: &str) -> PyResult<()> {
        let held = |error: serde_json::Error| {
            let what = format!("the certificate does not hold: {error}");
            raised(lipschitz_certify::Error::Violated(what))
        };
        let claim: Certificate = serde_json::from_str(certificate).map_err(held)?;
        let document = serde_json::from_str(certificate).map_err(held)?;
        strict::known(&document, &claim).map_err(held)?;
        interruptible(py, |stop| {
            self.with(|source| Ok(verify::verify(&claim, &Read { source, stop })?))
        })
    }

    /// The outputs for inputs, as the flat numbers in f64 with their shape.
    fn run(&self, py: Python<'_>, inputs: &Bound<'_, PyAny>) -> PyResult<(Vec<f64>, Vec<usize>)> {
        let inputs = tensor("the inputs", inputs)?;
        py.detach(|| {
            let (model, _) = self.model()?;
            let model = model.to(&Device::Cpu, DType::F64).map_err(raised)?;
            let y = model.forward(&inputs).map_err(raised)?;
            // A network without weights has no type of its own.
            let y = y.to_dtype(DType::F64).map_err(lipschitz_nn::Error::from).map_err(raised)?;
            let flat = y.flatten_all().and_then(|y| y.to_vec1::<f64>());
            Ok((flat.map_err(lipschitz_nn::Error::from).map_err(raised)?, y.dims().to_vec()))
        })
    }

    /// The steepest pair that a search from these inputs finds, beside the certified constant, as
    /// JSON.
    fn probe(
        &self,
        py: Python<'_>,
        inputs: &Bound<'_, PyAny>,
        seconds: f64,
        radius: Option<f64>,
    ) -> PyResult<String> {
        if !(0.0..=1e7).contains(&seconds) {
            return Err(crate::Error::new_err("seconds: must be from 0 to 1e7"));
        }
        let inputs = tensor("the inputs", inputs)?;
        interruptible(py, |stop| {
            let (model, _) = self.model()?;
            let inputs = match model.graph().input() {
                Input::Tokens { .. } if !inputs.dtype().is_float() => {
                    model.embed(&inputs).map_err(raised)?
                }
                _ => inputs,
            };
            let budget = Duration::from_secs_f64(seconds);
            search(&model, &inputs, budget, radius, stop).map_err(raised)
        })
    }

    /// What an attack finds and what is proven about the predictions for images or vectors, as JSON.
    fn robust(
        &self,
        py: Python<'_>,
        images: &Bound<'_, PyAny>,
        classes: &Bound<'_, PyAny>,
        eps: Vec<f64>,
        steps: usize,
        restarts: usize,
    ) -> PyResult<String> {
        if eps.is_empty() || eps.iter().any(|eps| !(eps.is_finite() && *eps >= 0.0)) {
            return Err(crate::Error::new_err("eps: wants radii of 0 or above"));
        }
        let (images, classes) = (tensor("the images", images)?, tensor("the classes", classes)?);
        interruptible(py, |stop| {
            let (model, _) = self.model()?;
            let limit = images.dim(0).unwrap_or_default();
            let search = ellipsoid::usual_steps(model.graph());
            let settings = Settings { eps, effort: Effort { steps, restarts }, limit, search };
            let batches = batches(&images, &classes).map_err(raised)?;
            let batches = batches.into_iter().map(Ok::<_, lipschitz_certify::Error>);
            let watch = |_| stop.check();
            let found = robust::images(&model, batches, limit, &settings, &watch);
            let found = found.map_err(raised)?;
            serde_json::to_string_pretty(&found).map_err(raised)
        })
    }

    /// How far each input may move before the decision can change, as JSON: token ids, images or
    /// vectors.
    fn local(
        &self,
        py: Python<'_>,
        inputs: &Bound<'_, PyAny>,
        norm: &str,
        radii: Vec<f64>,
        steps: usize,
    ) -> PyResult<String> {
        if radii.iter().any(|radius| !(radius.is_finite() && *radius >= 0.0)) {
            return Err(crate::Error::new_err("radii: wants numbers of 0 or above"));
        }
        let distance = match norm {
            "token" => Distance::Token,
            "l2" => Distance::L2,
            "linf" => Distance::Linf,
            other => {
                let what = format!("norm: `{other}` is none of token, l2 and linf");
                return Err(crate::Error::new_err(what));
            }
        };
        let inputs = tensor("the inputs", inputs)?;
        interruptible(py, |stop| {
            let (model, _) = self.model()?;
            let limit = inputs.dim(0).unwrap_or_default();
            let settings = local::Settings {
                distance,
                limit,
                radii,
                attack: (steps > 0).then_some(Effort { steps, restarts: 2 }),
                search: ellipsoid::usual_steps(model.graph()),
            };
            // There are no labels to be compared with.
            let labels = Tensor::zeros(limit, DType::U32, &Device::Cpu)
                .map_err(lipschitz_nn::Error::from)
                .map_err(raised)?;
            let batches = batches(&inputs, &labels).map_err(raised)?;
            let batches = batches.into_iter().map(Ok::<_, lipschitz_certify::Error>);
            let watch = |_| stop.check();
            let found = local::survey(&model, batches, &settings, &watch).map_err(raised)?;
            serde_json::to_string_pretty(&found).map_err(raised)
        })
    }
}

impl Network {
    /// Something about the network's weights, read one at a time where they are in a file.
    fn with<T>(&self, about: impl FnOnce(&dyn Source) -> anyhow::Result<T>) -> PyResult<T> {
        match &self.held {
            Held::At(path) => {
                let opened = lipschitz_certify::open(path).map_err(raised)?;
                about(&opened)
            }
            Held::Given(model, _) => about(&**model),
        }
        .map_err(raised)
    }

    /// All of it in memory.
    fn model(&self) -> PyResult<(Model, Meta)> {
        match &self.held {
            Held::At(path) => lipschitz_certify::load(path, &Device::Cpu).map_err(raised),
            Held::Given(model, meta) => Ok(((**model).clone(), (**meta).clone())),
        }
    }
}

/// Images with their classes, a batch at a time.
fn batches(
    images: &Tensor,
    classes: &Tensor,
) -> Result<Vec<(Tensor, Tensor)>, lipschitz_nn::Error> {
    let count = images.dim(0)?;
    let classes = classes.to_dtype(DType::U32)?;
    let part = |start: usize| {
        let size = robust::BATCH.min(count - start);
        Ok((images.narrow(0, start, size)?, classes.narrow(0, start, size)?))
    };
    (0..count).step_by(robust::BATCH).map(part).collect()
}

/// The certificate, with a search of so many steps for a smaller constant.
fn proven(
    source: &dyn Source,
    steps: Option<usize>,
    radius: Option<f64>,
    stop: &Stop,
) -> Result<Certificate, lipschitz_certify::Error> {
    let found = certificate::certify(source, Method::Proven, Formula::Sound, radius)?;
    let steps = steps.unwrap_or_else(|| ellipsoid::usual_steps(source.graph()));
    found.tighten(source, steps, &mut |_, _| stop.check())
}

/// The document about a found pair.
fn search(
    model: &Model,
    inputs: &Tensor,
    budget: Duration,
    radius: Option<f64>,
    stop: &Stop,
) -> anyhow::Result<String> {
    let certified = proven(model, None, radius, stop)?;
    let radius = certified.domain.radius.to_f64();
    let found = probe::probe(model, inputs, radius, budget, &mut |_| stop.check())?;
    if Upper::from_f64(found.at_least) > certified.l2 {
        let what = format!(
            "found a sensitivity of at least {} above the certified {}: a defect of the \
             certificate, please report it",
            found.at_least, certified.l2
        );
        return Err(lipschitz_certify::Error::Violated(what).into());
    }
    let flat = |x: &Tensor| -> anyhow::Result<serde_json::Value> {
        Ok(json!({"shape": x.dims(), "values": x.flatten_all()?.to_vec1::<f64>()?}))
    };
    Ok(serde_json::to_string(&json!({
        "found_l2": found.value(certified.l2),
        "at_least_l2": found.at_least,
        "certified_l2": certified.l2,
        "pair": [flat(&found.pair.0)?, flat(&found.pair.1)?],
    }))?)
}
