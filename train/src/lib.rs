//! Trains networks under an enforced Lipschitz constant.

pub mod config;
pub mod data;
pub mod events;
pub mod plan;
pub mod preset;
mod progress;
pub mod run_dir;
pub mod sample;
pub mod task;
pub mod trainer;
