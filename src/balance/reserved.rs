use tower::BoxError;

use super::shared::Shared;
use crate::policy::Choice;

/// A clone of a member's service that is ready for one request.
pub(super) struct Reserved<S> {
    pub(super) service: S,
    pub(super) wish: Wish,
    pub(super) version: u64,
}

/// The id of a member, and how much the policy wants it: this member and no other, or even while it
/// is draining.
// In one word: a `bool` beside the id costs each request 6 instructions more.
#[derive(Clone, Copy)]
pub(super) struct Wish(u64);

/// How a search for a ready member ends.
pub(super) enum Selected<S> {
    Reserved(Reserved<S>),
    NeedsRequest,
    /// The call returns this error, unless a snapshot newer than `version` comes first.
    Failed {
        error: BoxError,
        version: u64,
    },
}

impl<S> Reserved<S> {
    /// Returns whether the reserved member may still be called.
    #[inline]
    pub(super) fn holds<A, P, T>(&self, shared: &Shared<A, S, P, T>) -> bool {
        shared.is_current(self.version) || shared.snapshot().position(self.wish).is_some()
    }
}

impl Wish {
    /// Wishes for the member with this id, as a policy chose it.
    #[inline]
    pub(super) const fn new(id: u64, choice: Choice) -> Self {
        Self(match choice {
            Choice::Exactly(_) => id | EXACT,
            Choice::EvenDraining(_) => id | EVEN_DRAINING,
            _ => id,
        })
    }

    #[inline]
    pub(super) const fn id(self) -> u64 {
        self.0 & !(EXACT | EVEN_DRAINING)
    }

    pub(super) const fn is_even_draining(self) -> bool {
        self.0 & EVEN_DRAINING != 0
    }

    pub(super) const fn is_exact(self) -> bool {
        self.0 & EXACT != 0
    }
}

/// No balancer has had so many members that an id needs these bits.
const EXACT: u64 = 1 << 63;
const EVEN_DRAINING: u64 = 1 << 62;
