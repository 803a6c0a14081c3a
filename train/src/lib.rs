//! Trains networks under an enforced Lipschitz constant.

pub mod data;
pub mod events;
