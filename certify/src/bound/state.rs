//! What is known about a value on its way through the graph, and what one node does to it.

use lipschitz_nn::graph::Op;

use crate::upper::{Upper, count, root_down};

/// What the elements of a value are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One vector.
    Vector,
    /// An image: channels, height, width.
    Image([usize; 3]),
    /// Tokens, as many as these where that is known.
    Tokens(Option<usize>),
}

impl Layout {
    /// Whether its norm is that of one vector, so that there is but one.
    pub(crate) fn is_whole(self) -> bool {
        !matches!(self, Self::Tokens(_))
    }

    /// What a node makes of it that is not made of others.
    pub(crate) fn after(self, op: &Op) -> Self {
        let image = |layout| match layout {
            Self::Image(image) => Op::image(image, op),
            _ => None,
        };
        match op {
            Op::Flatten
            | Op::GlobalPool { .. }
            | Op::MeanPool
            | Op::FirstToken
            | Op::LastToken
            | Op::FirstAndMean => Self::Vector,
            Op::Patches { size } => match self {
                Self::Image([_, h, w]) if *size > 0 => {
                    Self::Tokens((h / size).checked_mul(w / size))
                }
                _ => Self::Tokens(None),
            },
            Op::ClassToken { .. } => match self {
                Self::Tokens(Some(n)) => Self::Tokens(n.checked_add(1)),
                other => other,
            },
            _ => image(self).map_or(self, Self::Image),
        }
    }

    /// The constant of a node from the ℓ2 norm of all tokens together to the same, given that from
    /// the largest token to the largest token; none is known where tokens are mixed.
    pub(super) fn whole(self, op: &Op, lipschitz: Upper) -> Option<Upper> {
        let mean = |n: usize| Upper::ONE.div_up(root_down(n.max(1) as f64));
        match (op, self) {
            // One norm.
            _ if self.is_whole() && self.after(op).is_whole() => Some(lipschitz),
            // The same pixels.
            (Op::Patches { .. }, _) => Some(Upper::ONE),
            // It has a rule of its own.
            (Op::Attention(_), _) => None,
            (Op::MeanPool, Self::Tokens(Some(n))) => Some(mean(n)),
            // ‖mean‖² is at most the mean of squares.
            (Op::MeanPool | Op::FirstAndMean, _) => Some(Upper::ONE),
            // Each token alone, or read once by each head.
            _ => Some(lipschitz),
        }
    }

    /// A bound on the ℓ2 norm of all tokens together, given that of the largest.
    pub(super) fn of_all(self, largest: Upper) -> Option<Upper> {
        match self {
            Self::Tokens(Some(n)) => Some(largest * count(n).sqrt()),
            Self::Tokens(None) => None,
            Self::Vector | Self::Image(_) => Some(largest),
        }
    }
}

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
    /// What they are.
    pub layout: Layout,
    /// The name of γ.
    pub gain: Option<String>,
    /// The name of β.
    pub shift: Option<String>,
}

impl State {
    pub(super) fn new(radius: Upper, width: usize) -> Self {
        let layout = Layout::Tokens(None);
        Self { radius, largest: Upper::INFINITY, width, layout, gain: None, shift: None }
    }

    /// The same in another layout.
    pub(super) fn laid_out(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// The best bound on the absolute value of an element of x.
    pub(super) fn element(&self) -> Upper {
        self.largest.min(self.radius)
    }
}

/// What one node does to values of a [`State`].
pub(super) struct Step {
    /// Its Lipschitz constant, in the norm of the largest token.
    pub lipschitz: Upper,
    /// The same in the ℓ2 norm of all tokens together, where it is known. For what is no sequence of
    /// tokens, both are that of the whole.
    pub together: Option<Upper>,
    /// What is known about its output.
    pub out: State,
    /// Which rule gave the constant.
    pub rule: String,
    /// Constant and radius of a norm with its gain, where `lipschitz` and `out` leave the gain to
    /// the next node.
    pub whole: Option<(Upper, Upper)>,
}
