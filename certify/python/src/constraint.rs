//! A weight constraint on arrays.

use std::sync::Mutex;

use candle_core::{Tensor, Var};
use lipschitz_nn::graph::{Geometry, Init, Parameter};
use lipschitz_opt::constraint::{self, ConstraintConfig};
use lipschitz_opt::{OptimizerConfig, Rate, Recipe, SgdConfig, Variable};
use pyo3::prelude::*;

use crate::arrays::{tensor, write};
use crate::{Error, raised};

/// What keeps matrices small after each step, whatever the step was.
#[pyclass(frozen, module = "lipschitz._lipschitz")]
pub(crate) struct Constraint {
    inner: Mutex<constraint::Constraint>,
}

/// A weight: its name, its array, and whether its rows are vectors of a table.
type Weight<'py> = (String, Bound<'py, PyAny>, bool);

#[pymethods]
impl Constraint {
    /// The section `[constraint]` of a config, as JSON.
    #[new]
    fn new(section: &str) -> PyResult<Self> {
        let config: ConstraintConfig = serde_json::from_str(section)
            .map_err(|error| Error::new_err(format!("the constraint: {error}")))?;
        // The steps of another library have no norm that is known here.
        let any = OptimizerConfig::Sgd(SgdConfig::default());
        let inner = constraint::Constraint::new(&Recipe::new(any, config)).map_err(raised)?;
        Ok(Self { inner: Mutex::new(inner) })
    }

    /// What is promised of a matrix after every step: its largest norm from RMS to RMS, if any.
    fn promise(&self, outputs: usize, inputs: usize) -> Option<f64> {
        let weight = parameter("weight".into(), vec![outputs, inputs], false);
        self.lock().promise(&weight).map(|promise| promise.sigma_max)
    }

    /// Brings weights under what is promised, in place.
    fn project(&self, py: Python<'_>, weights: Vec<Weight<'_>>) -> PyResult<()> {
        self.change(py, &weights, |constraint, variables| constraint.project(variables))
    }

    /// Constrains weights after a step of this learning rate, in place.
    fn apply(&self, py: Python<'_>, weights: Vec<Weight<'_>>, learning_rate: f64) -> PyResult<()> {
        let rate = Rate::constant(learning_rate);
        self.change(py, &weights, |constraint, variables| constraint.apply(variables, rate))
    }
}

impl Constraint {
    fn lock(&self) -> std::sync::MutexGuard<'_, constraint::Constraint> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change(
        &self,
        py: Python<'_>,
        weights: &[Weight<'_>],
        change: impl Fn(&mut constraint::Constraint, &[Variable]) -> Result<(), lipschitz_opt::Error>
        + Sync,
    ) -> PyResult<()> {
        let variables: Vec<Variable> = weights
            .iter()
            .map(|(name, array, table)| variable(name, array, *table))
            .collect::<PyResult<_>>()?;
        py.detach(|| change(&mut self.lock(), &variables)).map_err(raised)?;
        for ((name, array, _), variable) in weights.iter().zip(&variables) {
            write(name, array, variable.var.as_tensor())?;
        }
        Ok(())
    }
}

fn variable(name: &str, array: &Bound<'_, PyAny>, table: bool) -> PyResult<Variable> {
    let value: Tensor = tensor(name, array)?;
    if value.rank() != 2 || !value.dtype().is_float() {
        let shape = value.dims();
        return Err(Error::new_err(format!("{name}: wants two axes of floats, has {shape:?}")));
    }
    let parameter = parameter(name.to_string(), value.dims().to_vec(), table);
    let var = Var::from_tensor(&value).map_err(lipschitz_nn::Error::from).map_err(raised)?;
    Ok(Variable { parameter, var, rate: 1.0 })
}

fn parameter(name: String, shape: Vec<usize>, table: bool) -> Parameter {
    let geometry = if table { Geometry::Table } else { Geometry::Matrix };
    Parameter { name, shape, geometry, heads: None, init: Init::Zero, convolution: None }
}
