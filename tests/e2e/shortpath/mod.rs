//! Shortpath in networks of its own: every NAT, and everything that can happen to a path while a session runs.
mod matrix;
mod reach;
mod router;
mod scene;
mod showing;
mod survival;
