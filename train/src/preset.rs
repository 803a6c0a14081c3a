//! Configs to start from.

use crate::Error;

/// Their names.
pub const NAMES: [&str; 12] = [
    "convnet-cifar10",
    "convnet-mnist",
    "demo",
    "gpt-play",
    "gpt-shakespeare",
    "gpt-tight",
    "isometric-shakespeare",
    "mlp-cifar10",
    "mlp-images",
    "nanogpt-145m",
    "shift-cifar10",
    "vit-cifar10",
];

/// A commented config.
pub fn text(name: &str) -> Option<&'static str> {
    match name {
        "convnet-cifar10" => Some(include_str!("../presets/convnet-cifar10.toml")),
        "convnet-mnist" => Some(include_str!("../presets/convnet-mnist.toml")),
        "demo" => Some(include_str!("../presets/demo.toml")),
        "gpt-play" => Some(include_str!("../presets/gpt-play.toml")),
        "gpt-shakespeare" => Some(include_str!("../presets/gpt-shakespeare.toml")),
        "gpt-tight" => Some(include_str!("../presets/gpt-tight.toml")),
        "isometric-shakespeare" => Some(include_str!("../presets/isometric-shakespeare.toml")),
        "mlp-cifar10" => Some(include_str!("../presets/mlp-cifar10.toml")),
        "mlp-images" => Some(include_str!("../presets/mlp-images.toml")),
        "nanogpt-145m" => Some(include_str!("../presets/nanogpt-145m.toml")),
        "shift-cifar10" => Some(include_str!("../presets/shift-cifar10.toml")),
        "vit-cifar10" => Some(include_str!("../presets/vit-cifar10.toml")),
        _ => None,
    }
}

/// A commented config.
///
/// # Errors
/// [`Error::NoPreset`] lists those there are.
pub fn find(name: &str) -> Result<&'static str, Error> {
    text(name).ok_or_else(|| Error::NoPreset { name: name.to_string(), known: NAMES.join(", ") })
}
