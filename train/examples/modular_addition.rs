//! Writes all sums modulo 113, for a network to learn from some of them what the others are.
//!
//!     cargo run --release --example modular_addition -- modular.safetensors
//!
//! `x` is `[12769, 226]`: which number the first is, and which the second. `y` is their sum modulo 113.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};

/// The modulus of Nanda et al., *Progress measures for grokking via mechanistic interpretability*, 2023.
const P: usize = 113;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(out) = std::env::args().nth(1).map(PathBuf::from) else {
        return Err("name the file to write, such as modular.safetensors".into());
    };
    let (mut x, mut y) = (vec![0f32; P * P * 2 * P], Vec::with_capacity(P * P));
    for (row, x) in x.chunks_mut(2 * P).enumerate() {
        let (a, b) = (row / P, row % P);
        x[a] = 1.0;
        x[P + b] = 1.0;
        y.push(((a + b) % P) as u32);
    }
    let device = Device::Cpu;
    let tensors = HashMap::from([
        ("x", Tensor::from_vec(x, (P * P, 2 * P), &device)?),
        ("y", Tensor::from_vec(y, P * P, &device)?),
    ]);
    candle_core::safetensors::save(&tensors, &out)?;
    println!("{}: {} sums", out.display(), P * P);
    Ok(())
}
