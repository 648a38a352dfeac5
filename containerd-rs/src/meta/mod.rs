//! What the daemon remembers: records in one database file, and what may be forgotten of it.

pub mod db;
pub mod gc;
pub mod gcsched;
pub mod labels;
pub mod leases;
pub mod records;

pub use db::{Db, ReadTx, Reader, Record, WriteTx};
