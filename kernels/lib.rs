//! Numbers only.
pub mod pool {
    //! Stub.
    /// Pool.
    pub struct Pool;
}
