//! Weights as expressions of the tensors of a file.

use candle_core::{DType, Device, Tensor};

use lipschitz_nn::Error;

use crate::formats::files::Files;

/// A tensor of a file, and how it becomes a weight.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorExpr {
    /// Its name in the file.
    pub name: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// Numbers that follow from the config, in place of a tensor of a file.
    numbers: Option<Vec<f64>>,
    steps: Vec<Transform>,
}

#[derive(Clone, Debug, PartialEq)]
enum Transform {
    Transpose,
    Reshape(Vec<usize>),
    Narrow {
        dim: usize,
        from: usize,
        count: usize,
    },
    Add(f64),
    Times(f64),
    /// Divides each row by its ℓ2 norm.
    UnitRows,
    /// Multiplies row i by element i.
    ScaleRows(TensorExpr),
    /// Adds a row to each row.
    AddRow(TensorExpr),
    /// Multiplies column j by number j.
    ScaleColumns(Vec<f64>),
    /// A matrix times a vector.
    Dot(Vec<f64>),
    /// So many columns of zeros in front of a matrix.
    AfterZeros(usize),
    /// Puts the rows of another one below.
    Append(TensorExpr),
}

impl TensorExpr {
    pub(crate) fn new(name: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), numbers: None, steps: Vec::new() }
    }

    /// Numbers that no file holds.
    pub(crate) fn numbers(numbers: Vec<f64>, shape: &[usize]) -> Self {
        Self { numbers: Some(numbers), ..Self::new("", shape) }
    }

    fn then(mut self, step: Transform) -> Self {
        self.steps.push(step);
        self
    }

    /// `[a, b]` to `[b, a]`.
    pub(crate) fn transpose(self) -> Self {
        self.then(Transform::Transpose)
    }

    pub(crate) fn reshape(self, shape: &[usize]) -> Self {
        self.then(Transform::Reshape(shape.to_vec()))
    }

    /// `count` rows from row `from`.
    pub(crate) fn rows(self, from: usize, count: usize) -> Self {
        self.narrow(0, from, count)
    }

    pub(crate) fn narrow(self, dim: usize, from: usize, count: usize) -> Self {
        self.then(Transform::Narrow { dim, from, count })
    }

    pub(crate) fn add(self, number: f64) -> Self {
        self.then(Transform::Add(number))
    }

    pub(crate) fn times(self, number: f64) -> Self {
        self.then(Transform::Times(number))
    }

    pub(crate) fn unit_rows(self) -> Self {
        self.then(Transform::UnitRows)
    }

    pub(crate) fn scale_rows(self, by: TensorExpr) -> Self {
        self.then(Transform::ScaleRows(by))
    }

    pub(crate) fn add_row(self, row: TensorExpr) -> Self {
        self.then(Transform::AddRow(row))
    }

    pub(crate) fn scale_columns(self, by: Vec<f64>) -> Self {
        self.then(Transform::ScaleColumns(by))
    }

    pub(crate) fn dot(self, vector: Vec<f64>) -> Self {
        self.then(Transform::Dot(vector))
    }

    pub(crate) fn after_zeros(self, columns: usize) -> Self {
        self.then(Transform::AfterZeros(columns))
    }

    pub(crate) fn append(self, below: TensorExpr) -> Self {
        self.then(Transform::Append(below))
    }

    /// Every tensor that it reads, with its shape.
    pub(crate) fn sources(&self) -> Vec<(&str, &[usize])> {
        let mut out = match self.numbers {
            Some(_) => Vec::new(),
            None => vec![(self.name.as_str(), self.shape.as_slice())],
        };
        for step in &self.steps {
            if let Transform::ScaleRows(other)
            | Transform::AddRow(other)
            | Transform::Append(other) = step
            {
                out.extend(other.sources());
            }
        }
        out
    }

    /// Whether the rows of another are the first of these.
    pub(crate) fn begins_with(&self, other: &Self) -> bool {
        let Some(Transform::Narrow { dim: 0, from, count }) = other.steps.last() else {
            return self == other;
        };
        let mut own = self.clone();
        if let Some(Transform::Narrow { dim: 0, from: first, .. }) = self.steps.last()
            && first == from
        {
            own.steps.pop();
        } else if *from != 0 {
            return self == other;
        }
        own.rows(*from, *count) == *other || self == other
    }

    /// How many steps make it.
    pub(crate) fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Whether numbers change, so that they are rounded.
    pub(crate) fn computes(&self) -> bool {
        let moves = |step: &Transform| match step {
            Transform::Transpose
            | Transform::Reshape(_)
            | Transform::Narrow { .. }
            | Transform::AfterZeros(_) => true,
            Transform::Append(below) => !below.computes(),
            Transform::Add(_)
            | Transform::Times(_)
            | Transform::ScaleRows(_)
            | Transform::ScaleColumns(_)
            | Transform::Dot(_)
            | Transform::AddRow(_)
            | Transform::UnitRows => false,
        };
        self.numbers.is_some() || !self.steps.iter().all(moves)
    }

    /// The weight; steps are computed in f64 and rounded once.
    pub(crate) fn read(&self, files: &Files, dtype: DType) -> Result<Tensor, Error> {
        let mut x = match &self.numbers {
            Some(numbers) => Tensor::from_slice(numbers, self.shape.as_slice(), &Device::Cpu)?,
            None => files.read(&self.name)?,
        };
        if self.computes() {
            x = x.to_dtype(DType::F64)?;
        }
        for step in &self.steps {
            x = match step {
                // Views, of which only what is needed is copied.
                Transform::Transpose => x.t()?,
                Transform::Reshape(shape) => x.reshape(shape.as_slice())?,
                Transform::Narrow { dim, from, count } => x.narrow(*dim, *from, *count)?,
                Transform::Add(number) => (x + *number)?,
                Transform::Times(number) => (x * *number)?,
                Transform::UnitRows => x.broadcast_div(&x.sqr()?.sum_keepdim(1)?.sqrt()?)?,
                Transform::ScaleRows(by) => {
                    let by = by.read(files, DType::F64)?;
                    let mut shape = vec![1; x.rank()];
                    shape[0] = by.elem_count();
                    x.broadcast_mul(&by.reshape(shape)?)?
                }
                Transform::Append(below) => {
                    let dtype = x.dtype();
                    Tensor::cat(&[x, below.read(files, dtype)?], 0)?
                }
                Transform::AddRow(row) => {
                    x.broadcast_add(&row.read(files, DType::F64)?.flatten_all()?)?
                }
                Transform::ScaleColumns(by) => {
                    x.broadcast_mul(&Tensor::new(by.as_slice(), x.device())?)?
                }
                Transform::Dot(vector) => {
                    let vector = Tensor::new(vector.as_slice(), x.device())?;
                    x.contiguous()?.matmul(&vector.unsqueeze(1)?)?.squeeze(1)?
                }
                Transform::AfterZeros(columns) => x.pad_with_zeros(1, *columns, 0)?,
            };
        }
        // A copy, so that a weight does not keep the whole of a fused tensor alive.
        Ok(x.to_dtype(dtype)?.force_contiguous()?)
    }
}

/// Collects the weights of a graph, each under its path.
#[derive(Default)]
pub(crate) struct WeightMap(pub Vec<(String, TensorExpr)>);

impl WeightMap {
    pub(crate) fn put(&mut self, to: impl Into<String>, weight: TensorExpr) {
        self.0.push((to.into(), weight));
    }

    /// A `[outputs, inputs]` matrix, and its bias if it has one.
    pub(crate) fn linear(
        &mut self,
        to: &str,
        from: &str,
        outputs: usize,
        inputs: usize,
        bias: bool,
    ) {
        self.put(
            format!("{to}.weight"),
            TensorExpr::new(format!("{from}.weight"), &[outputs, inputs]),
        );
        if bias {
            self.vector(&format!("{to}.bias"), &format!("{from}.bias"), outputs);
        }
    }

    /// The gain of a norm, and its shift if it has one.
    pub(crate) fn norm(&mut self, to: &str, from: &str, dim: usize, bias: bool) {
        self.vector(&format!("{to}.weight"), &format!("{from}.weight"), dim);
        if bias {
            self.vector(&format!("{to}.bias"), &format!("{from}.bias"), dim);
        }
    }

    pub(crate) fn vector(&mut self, to: &str, from: &str, dim: usize) {
        self.put(to, TensorExpr::new(from, &[dim]));
    }
}
