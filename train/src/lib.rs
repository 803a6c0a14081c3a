//! Trains networks under an enforced Lipschitz constant.
//!
//! ```
//! use lipschitz_train::config::Config;
//! use lipschitz_train::trainer::{self, End, RunOptions};
//! use lipschitz_train::{Error, preset};
//!
//! # fn main() -> Result<(), Error> {
//! # let directory = tempfile::tempdir().expect("a directory");
//! # let out = directory.path().join("run");
//! let settings = ["lipschitz_target=10", "train.steps=3", "data.characters=20000"];
//! let settings = settings.map(String::from);
//! let config = Config::parse(preset::find("demo")?, &settings)?;
//! let End::Done(Some(summary)) = trainer::run(&config, &RunOptions::new(&out))? else {
//!     unreachable!("nothing stops the run")
//! };
//! assert!(summary.lipschitz.to_f64() <= 10.0);
//! # Ok(())
//! # }
//! ```
//!
//! A [`config::Config`] is a TOML file: network, data, optimizer, constraint, steps.
//! [`trainer::run`] makes the run in a directory ([`run_dir`]) with metrics, checkpoints, a
//! certificate and a summary; a resumed run ends as an uninterrupted one. [`sweep`] makes many runs
//! from one file, and [`estimate`](mod@estimate) says beforehand what a step takes.

// The program's own files call the library by its name, as other programs do.
extern crate self as lipschitz_train;

mod append_file;
pub mod averaging;
pub mod cli;
pub mod config;
pub mod device;
pub mod dynamics;
mod error;
pub mod estimate;
pub mod events;
mod keys;
mod loader;
mod lock;
mod logits;
pub mod loss;
pub mod preset;
pub mod progress;
mod ranges;
pub mod ranks;
pub mod reference;
mod resume;
pub mod run_dir;
pub mod runtime;
pub mod sample;
mod saved;
mod seed;
pub mod shards;
pub mod step;
pub mod sweep;
mod target;
pub mod teacher;
pub mod trainer;

pub use candle_core;

pub use error::Error;
pub use keys::Mistake;
