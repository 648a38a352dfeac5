//! The fuzz targets' functions on generated inputs.

#[path = "../fuzz/entry.rs"]
mod entry;
#[path = "../../tests/mutate.rs"]
mod mutate;

use mutate::mutated_text;
use proptest::prelude::*;

const FILTERS: &[&str] = &[
    "name==foo",
    "labels.\"very complex/label\"~=/a|b/,id!=x",
    "name~=|^foo$|,labels.bar,!labels.baz",
    "topic~=\"/tasks/\",event.exit_status==0",
];
const FILTER_WORDS: &[&str] =
    &["==", "!=", "~=", ",", ".", "\"", "|", "/", "\\x", "\\u12", "labels.", "(", "[a-", "{1000}", "é"];

const FILES: &[&str] = &[
    "version = 3\nroot = \"/a\"\nstate = '/b'\noom_score = -999\ndisabled_plugins = [\"x\"]\n[grpc]\naddress = \"/g\"\nuid = 5\n[debug]\nlevel = \"debug\"\n",
    "version = 2\n[plugins.\"io.containerd.gc.v1.scheduler\"]\npause_threshold = 0.02\n[plugins.\"io.containerd.grpc.v1.cri\".x]\ny = [1, 2]\n[timeouts]\n\"io.x\" = \"5s\"\n",
    "version = 3\n[proxy_plugins.a]\ntype = \"snapshot\"\naddress = \"/x\"\ncapabilities = [\"c\"]\n[proxy_plugins.a.exports]\nroot = \"/r\"\n[metrics]\naddress = \"127.0.0.1:1\"\n",
];
const FILE_WORDS: &[&str] = &[
    "[plugins.\"",
    "\"]",
    "= ",
    "[[",
    "''",
    "\"\"\"",
    "version = 2\n",
    "1979-05-27T07:32:00Z",
    "nan",
    "0x",
    "{}",
    "\\u0000",
    "-9223372036854775808",
];

proptest! {
    #[test]
    fn filters(text in mutated_text(FILTERS, FILTER_WORDS)) {
        entry::filters(&text);
    }

    #[test]
    fn configurations(text in mutated_text(FILES, FILE_WORDS)) {
        entry::config(&text);
    }
}
