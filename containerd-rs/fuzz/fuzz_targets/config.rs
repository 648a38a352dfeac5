#![no_main]
#![allow(dead_code, reason = "the other target runs the rest")]

#[path = "../entry.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|text: &str| entry::config(text));
