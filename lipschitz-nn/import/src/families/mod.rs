//! One file for each family of models.

pub(crate) mod bert;
pub(crate) mod gpt2;
pub(crate) mod llama;
pub(crate) mod llama2c;
pub(crate) mod mlp;
pub(crate) mod modernbert;
pub(crate) mod modula;
pub(crate) mod modula_run;
pub(crate) mod t5;
pub(crate) mod vit;
