//! What is known about a value on its way through the graph, and what one node does to it.

use crate::upper::Upper;

/// What is known about a value: it is `γ ∘ x + β` with `‖x‖ ≤ radius`. Gain γ and shift β are those
/// of a norm just passed, and go into the next linear map; elsewhere there are none.
#[derive(Clone)]
pub(super) struct State {
    /// Bound on the ℓ2 norm of a token x.
    pub radius: Upper,
    /// Bound on the absolute value of an element of x, where an image was clipped or the next node
    /// wants to know; else infinite.
    pub largest: Upper,
    /// Elements per token.
    pub width: usize,
    /// The name of γ.
    pub gain: Option<String>,
    /// The name of β.
    pub shift: Option<String>,
}

impl State {
    pub(super) fn new(radius: Upper, width: usize) -> Self {
        Self { radius, largest: Upper::INFINITY, width, gain: None, shift: None }
    }

    /// The best bound on the absolute value of an element of x.
    pub(super) fn element(&self) -> Upper {
        self.largest.min(self.radius)
    }
}

/// What one node does to values of a [`State`].
pub(super) struct Step {
    /// Its Lipschitz constant.
    pub lipschitz: Upper,
    /// What is known about its output.
    pub out: State,
    /// Which rule gave the constant.
    pub rule: String,
    /// Constant and radius of a norm with its gain, where `lipschitz` and `out` leave the gain to
    /// the next node.
    pub whole: Option<(Upper, Upper)>,
}
