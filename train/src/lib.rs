//! Trains networks under an enforced Lipschitz constant.

pub mod config;
pub mod dynamics;
pub mod estimate;
pub mod events;
pub mod preset;
mod progress;
pub mod ranks;
pub mod run_dir;
pub mod runtime;
pub mod sample;
pub mod shards;
pub mod step;
pub mod sweep;
pub mod trainer;
