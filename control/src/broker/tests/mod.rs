//! A whole broker on a free port, spoken to over real TLS.

mod api;
mod enrol;
mod events;
mod feed;
mod gateways;
mod links;
mod policy;
mod roles;
mod sessions;
mod signin;
mod start;
mod support;
mod trail;
