//! dockerd-rs: Docker's Engine API over containerd.
//!
//! The program is `main.rs` over this library. Layers, from the outside in: [`api`] (HTTP) → [`engine`] (wiring) → [`container`],
//! [`image`], [`network`], [`volume`] (what the user sees) → [`runtime`] (containerd), [`store`] (records), [`events`] (journal).

#![recursion_limit = "256"]

pub mod api;
pub mod config;
pub mod container;
pub mod engine;
pub mod error;
pub mod events;
pub mod fetch;
pub mod fs;
pub mod guest;
pub mod image;
pub mod listen;
pub mod mountfs;
pub mod nethelper;
pub mod network;
pub mod phase;
pub mod plugin;
pub mod readonly;
pub mod runtime;
pub mod store;
pub mod supervisor;
pub mod system;
pub mod volume;
