//! Where names of owners come from: what is known at once ([`Owners`]), and how the rest is found out, between two attempts at
//! a group of operations.

use futures_util::future::{LocalBoxFuture, ready};

use crate::v4::owner::{Numbers, Owners};

/// Names that can be looked up.
pub trait OwnerNames: Owners {
    /// What is known.
    fn as_known(&self) -> &dyn Owners;

    /// Looks up what is missing. Ends within a deadline; what cannot be found out in time counts as known for a while, as
    /// something without a name.
    fn find(&self) -> LocalBoxFuture<'_, ()>;
}

impl OwnerNames for Numbers {
    fn as_known(&self) -> &dyn Owners {
        self
    }

    fn find(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(ready(()))
    }
}
