//! A whole broker on a free port, spoken to over real TLS.

mod api;
mod links;
mod sessions;
mod start;
mod support;
