//! Arrays of numpy as tensors.

use candle_core::{DType, Device, Tensor};
use lipschitz_certify::spectral::{Matrix, Method, spectral_norm};
use numpy::{PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::prelude::*;

use crate::{Error, raised};

/// Whether the numbers of an array lie where their type may: fields of records need not, and steps between
/// them are counted in whole numbers.
fn check_aligned(name: &str, array: &Bound<'_, PyAny>) -> PyResult<()> {
    let aligned = array.getattr("flags").and_then(|flags| flags.getattr("aligned")?.extract());
    match aligned {
        Ok(false) => Err(Error::new_err(format!(
            "{name}: its numbers are not aligned, as those of a field of records; give a copy of it"
        ))),
        _ => Ok(()),
    }
}

/// A tensor with the numbers of an array of floats or of whole numbers.
pub(crate) fn tensor(name: &str, array: &Bound<'_, PyAny>) -> PyResult<Tensor> {
    check_aligned(name, array)?;
    macro_rules! read {
        ($($element:ty),*) => {
            $(if let Ok(array) = array.extract::<PyReadonlyArrayDyn<'_, $element>>() {
                let view = array.as_array();
                let in_order = || view.iter().copied().collect();
                let values = view.as_slice().map_or_else(in_order, <[$element]>::to_vec);
                return Tensor::from_vec(values, view.shape(), &Device::Cpu).map_err(wrong(name));
            })*
        };
    }
    read!(f32, f64, half::f16, i64, u32, u8);
    let kind = array.get_type().qualname()?;
    let of = array.getattr("dtype").map(|dtype| format!(" of {dtype}")).unwrap_or_default();
    Err(Error::new_err(format!("{name}: {kind}{of} is no array of f16, f32, f64, i64, u32 or u8")))
}

fn wrong(name: &str) -> impl Fn(candle_core::Error) -> PyErr + '_ {
    move |error| {
        raised(anyhow::Error::from(lipschitz_nn::Error::from(error)).context(name.to_string()))
    }
}

/// Writes a tensor's numbers over those of an array of f32 or f64 of the same shape.
pub(crate) fn write(name: &str, array: &Bound<'_, PyAny>, tensor: &Tensor) -> PyResult<()> {
    check_aligned(name, array)?;
    macro_rules! write {
        ($($element:ty),*) => {
            $(if let Ok(mut array) = array.extract::<PyReadwriteArrayDyn<'_, $element>>() {
                let values = tensor.flatten_all().and_then(|flat| flat.to_vec1::<$element>());
                let values = values.map_err(wrong(name))?;
                let mut view = array.as_array_mut();
                match view.as_slice_mut() {
                    Some(slice) if slice.len() == values.len() => slice.copy_from_slice(&values),
                    _ => view.iter_mut().zip(values).for_each(|(to, x)| *to = x),
                }
                return Ok(());
            })*
        };
    }
    write!(f32, f64);
    Err(Error::new_err(format!("{name}: wants an array of f32 or f64 that can be written to")))
}

/// spectral_norm_upper(matrix)
/// --
///
/// A proven upper bound on the largest singular value of a matrix: no rounding is left out.
#[pyfunction]
pub(crate) fn spectral_norm_upper(py: Python<'_>, matrix: &Bound<'_, PyAny>) -> PyResult<f64> {
    let tensor = tensor("the matrix", matrix)?;
    if tensor.rank() != 2 || !tensor.dtype().is_float() || tensor.dtype() == DType::U8 {
        let shape = tensor.dims();
        return Err(Error::new_err(format!("the matrix: wants two axes of floats, has {shape:?}")));
    }
    py.detach(|| {
        let matrix = Matrix::from_tensor("the matrix", &tensor).map_err(raised)?;
        Ok(spectral_norm(&matrix, Method::Proven).upper.to_f64())
    })
}
