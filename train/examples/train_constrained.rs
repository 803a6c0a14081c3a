//! Trains a small language model whose Lipschitz constant is chosen in advance, then reads the proof.
//!
//!     cargo run --release --example train_constrained -- DIRECTORY
//!
//! DIRECTORY must not hold a run. A few seconds on two cores; nothing to download.

use std::path::PathBuf;

use lipschitz_train::config::Config;
use lipschitz_train::preset;
use lipschitz_train::trainer::{self, End, RunOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(out) = std::env::args().nth(1).map(PathBuf::from) else {
        return Err("name a directory for the run".into());
    };
    // A preset with two keys changed: the cap of every matrix is solved from the target.
    let settings = ["lipschitz_target=5", "train.steps=60"].map(String::from);
    let config = Config::parse(preset::text("demo").unwrap_or_default(), &settings)?;
    let options = RunOptions { quiet: false, label: "L ≤ 5".into(), ..RunOptions::new(&out) };
    if let End::Done(Some(summary)) = trainer::run(&config, &options)? {
        println!("validation loss {:.4} nats, L ≤ {}", summary.val_loss, summary.lipschitz);
        println!("the certificate: {}", out.join("certificate.json").display());
    }
    Ok(())
}
