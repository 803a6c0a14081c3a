//! File formats: bytes to named tensors.

pub(crate) mod archive;
pub(crate) mod files;
pub(crate) mod pickle;
pub(crate) mod torch;
