//! Who may connect, and how that is proven.

pub mod tls;
