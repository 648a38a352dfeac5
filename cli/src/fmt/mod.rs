//! How results are shown: tables, templates, units and progress, as Docker shows them.

pub mod progress;
pub mod table;
pub mod template;
pub mod units;
