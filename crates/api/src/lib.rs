//! The IPFS Pinning Service API and the admin routes over HTTP.
