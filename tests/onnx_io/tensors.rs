//! tensors
