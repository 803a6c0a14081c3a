//! What networks read.

#[cfg(doc)]
use super::{Graph, Op};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// What a network reads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Input {
    /// Token ids `[batch, tokens]`; the first node is an [`Op::Embedding`].
    Tokens {
        /// Longest sequence.
        context: usize,
        /// The token that begins a new document: attention stays within a document.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        separator: Option<u32>,
        /// How many zero vectors stand in front of the embedding vectors of every sequence, so that
        /// its first tokens have others in sight as well. They stay zero up to the last attention,
        /// which [`Graph::new`] checks, and the output is without them.
        #[serde(default, skip_serializing_if = "is_zero")]
        zero_prefix: usize,
    },
    /// Images `[batch, channels, height, width]`.
    Pixels {
        /// Colour channels.
        channels: usize,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// Vectors `[batch, dim]`.
    Vector {
        /// Their length.
        dim: usize,
    },
}

impl Input {
    /// Token ids, up to `context` of them, one document.
    pub fn tokens(context: usize) -> Self {
        Self::Tokens { context, separator: None, zero_prefix: 0 }
    }

    /// How many positions metrics count per example: the tokens of a longest sequence; an image or
    /// a vector is one.
    pub fn positions(&self) -> usize {
        match self {
            Self::Tokens { context, .. } => *context,
            Self::Pixels { .. } | Self::Vector { .. } => 1,
        }
    }
}
