//! The fuzz target's function on generated inputs.

#[path = "../fuzz/entry.rs"]
mod entry;
#[path = "../../../tests/mutate.rs"]
mod mutate;

use mutate::mutated_text;
use proptest::prelude::*;

const FILES: &[&str] = &[
    "server = \"https://registry.test\"\n[host.\"https://mirror.test:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = \"ca.pem\"\n  skip_verify = true\n",
    "[host.\"http://[::1]:80/v2/x\"]\n  override_path = true\n  client = [[\"a.cert\", \"a.key\"], [\"b.pem\"]]\n  [host.\"http://[::1]:80/v2/x\".header]\n    x = [\"1\", \"2\"]\n",
    "server = \"registry.test\"\n[host.\"mirror\"]\n  capabilities = [\"push\"]\n  ca = [\"a\", \"b\"]\n  dial_timeout = \"3s\"\n",
];
const WORDS: &[&str] = &[
    "[host.\"", "\"]", "https://", "user:pw@", "/v2", "#", "?", "%2f", "[::", "= [", "true", "-1", "'''",
    "\\u0000",
];

proptest! {
    #[test]
    fn hosts(text in mutated_text(FILES, WORDS)) {
        entry::hosts(&text);
    }
}
