//! File formats: bytes to named tensors.

pub(crate) mod archive;
pub(crate) mod files;
pub(crate) mod gguf;
pub(crate) mod kind;
pub(crate) mod npy;
pub(crate) mod onnx;
pub(crate) mod pickle;
pub(crate) mod source;
mod state_dict;
#[cfg(test)]
mod tests;
pub(crate) mod torch;
