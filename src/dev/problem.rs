//! What the user can put right.

/// A sentence that names what cannot be used, its value and the remedy; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub String);
