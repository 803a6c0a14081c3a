//! Loops over the widest vectors of the processor, and reductions that vectorise.

use super::real::Real;

/// Runs a loop with the widest vectors of the processor; it and what it calls must be inlined, so
/// mark the closure `#[inline(always)]`.
#[inline(always)]
pub(crate) fn simd<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Accumulators side by side, so that a sum is not one long chain of additions.
const LANES: usize = 16;

/// Σ f(i) over `0..n`.
#[inline(always)]
pub(crate) fn sum<T: Real>(n: usize, f: impl Fn(usize) -> T) -> T {
    let mut lanes = [T::of(0.0); LANES];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (j, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + j);
        }
        i += LANES;
    }
    let mut total = T::of(0.0);
    for lane in lanes {
        total += lane;
    }
    for i in whole..n {
        total += f(i);
    }
    total
}

/// The largest element; NaN may be passed over.
#[inline(always)]
pub(crate) fn max<T: Real>(x: &[T]) -> T {
    let mut lanes = [T::of(f64::NEG_INFINITY); LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    lanes
        .iter()
        .chain(chunks.remainder())
        .fold(T::of(f64::NEG_INFINITY), |m, x| if *x > m { *x } else { m })
}
