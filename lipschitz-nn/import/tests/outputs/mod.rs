//! Outputs, compared.

use lipschitz_import::candle_core::{DType, Tensor};

/// All elements, in f64.
pub(crate) fn flat(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The largest difference of two elements of as many; NaN is as far away as can be.
pub(crate) fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "outputs of different sizes");
    let each = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    each.fold(0.0, |most, d| if d > most || d.is_nan() { d } else { most })
}

#[test]
fn nan_is_no_match() {
    for (a, b) in [
        ([f64::NAN, 0.0], [0.0, 0.0]),
        ([0.0, 1.0], [0.0, f64::NAN]),
        ([f64::NAN; 2], [f64::NAN; 2]),
    ] {
        assert!(distance(&a, &b).is_nan());
    }
    assert_eq!(distance(&[1.0, -2.0], &[1.5, 1.0]), 3.0);
}
