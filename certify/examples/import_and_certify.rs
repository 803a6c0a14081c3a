//! Certifies a third-party checkpoint, one tensor in memory at a time.
//!
//!     cargo run --example import_and_certify -- DIRECTORY [RADIUS]
//!
//! DIRECTORY holds a `config.json` and safetensors or PyTorch files. Networks with attention need a
//! bounded domain: the embedding vectors for language models, else the ℓ2 RADIUS of the input.

use std::path::Path;

use lipschitz_certify::certificate::{Formula, certify};
use lipschitz_certify::spectral::Method;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let Some(path) = arguments.next() else { return Err("name a model's directory".into()) };
    let radius = arguments.next().map(|text| text.parse()).transpose()?;

    let model = lipschitz_certify::open(Path::new(&path))?;
    let certificate = certify(&model, Method::Proven, Formula::Sound, radius)?;
    println!("{path}: L ≤ {} from l2 to l2", certificate.l2);
    println!("domain: {}, ‖x‖₂ ≤ {}", certificate.domain.text, certificate.domain.radius);
    if let Some(origin) = &certificate.origin {
        println!("function: {}", origin.family);
        origin.notes.iter().for_each(|note| println!("note: {note}"));
    }
    Ok(())
}
