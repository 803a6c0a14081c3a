//! The rows of a certificate: what is known about one node, and about one norm of a weight.

use lipschitz_nn::graph::NodeId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::spectral::Method;
use crate::upper::Upper;

/// What bound propagation gives for one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeBound {
    /// Which node of the graph; absent in certificates of format 1. Several nodes may share a path.
    #[serde(default, skip_serializing_if = "NodeId::is_root")]
    pub id: NodeId,
    /// The node's path.
    pub path: String,
    /// The node's kind.
    pub kind: String,
    /// Its Lipschitz constant, ℓ2 per token, on the ball of its inputs; where the rule says so,
    /// that of the node with the gain of the norm in front of it.
    pub lipschitz: Upper,
    /// The constant from the input of the network, or of the residual body or branch that the node
    /// is in, to the node's output.
    pub cumulative: Upper,
    /// A bound on the ℓ2 norm of each token of its output.
    pub radius: Upper,
    /// Which rule gave the constant.
    pub rule: String,
}

/// What is known about a norm of a weight: the spectral norm, unless the name says another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightRow {
    /// The weight's name, with its block or partner.
    pub name: String,
    /// The norm is at least this.
    pub lower: f64,
    /// The norm is at most this.
    pub upper: Upper,
    /// How the upper end was found.
    pub method: Method,
}
