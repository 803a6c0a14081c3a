//! The norms that weights are measured, updated and capped in.

/// √(in/out): the factor from σ_max(W) to `‖W‖_RMS→RMS` for a `[out, in]` matrix (Large et al.,
/// *Scalable Optimization in the Modular Norm*).
pub fn rms_to_rms(outputs: usize, inputs: usize) -> f64 {
    (inputs as f64 / outputs as f64).sqrt()
}

/// `‖x‖₂ / √d`.
pub fn rms(x: &[f64]) -> f64 {
    (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt()
}
