//! Certifies a network that a candle program has trained: declares its graph, takes the weights
//! from its `VarMap`, checks that both compute the same, and proves a bound.
//!
//!     cargo run --example certify_var_map

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{VarBuilder, VarMap, linear};
use lipschitz_certify::certificate::{Formula, certify};
use lipschitz_certify::spectral::Method;
use lipschitz_nn::graph::{Function, Input};
use lipschitz_nn::{Graph, Model, compare};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The program's own network; its variables are in a VarMap.
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let (up, down) = (linear(8, 32, vb.pp("up"))?, linear(32, 4, vb.pp("down"))?);
    let forward = |x: &Tensor| down.forward(&up.forward(x)?.relu()?);

    // The same network as a graph. Nodes have the names of the variables.
    let graph = Graph::builder(Input::Vector { dim: 8 })
        .linear("up", 32)
        .activation(Function::Relu)
        .linear("down", 4)
        .build()?;
    let model = Model::from_var_map(graph, &variables)?;
    compare(&model, &forward, &[Tensor::randn(0f32, 1.0, (16, 8), &Device::Cpu)?])?;

    let certificate = certify(&model, Method::Proven, Formula::Sound, None)?;
    println!("L ≤ {} from l2 to l2, {} from RMS to RMS", certificate.l2, certificate.rms);
    for row in &certificate.nodes {
        println!("{:>6}  {:<10} L ≤ {}", row.path, row.kind, row.lipschitz);
    }
    Ok(())
}
