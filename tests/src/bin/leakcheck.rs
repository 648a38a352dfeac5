//! `leakcheck snap FILE` writes down what is on the machine; `leakcheck diff FILE` fails if there is more now.
//!
//! It waits a few seconds for what is on its way out (orphans are reaped by PID 1 in its own time).

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["snap", file] => {
            let lines: Vec<String> = e2e_tests::leak::snapshot().into_iter().collect();
            match std::fs::write(file, lines.join("\n")) {
                Ok(()) => ExitCode::SUCCESS,
                Err(err) => {
                    eprintln!("leakcheck: {file}: {err}");
                    ExitCode::FAILURE
                }
            }
        }
        ["diff", file] => diff(file),
        _ => {
            eprintln!("usage: leakcheck snap|diff FILE");
            ExitCode::FAILURE
        }
    }
}

fn diff(file: &str) -> ExitCode {
    let before: BTreeSet<String> = match std::fs::read_to_string(file) {
        Ok(text) => text.lines().map(str::to_owned).collect(),
        Err(err) => {
            eprintln!("leakcheck: {file}: {err}");
            return ExitCode::FAILURE;
        }
    };
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let more: Vec<String> =
            e2e_tests::leak::snapshot().into_iter().filter(|line| !before.contains(line)).collect();
        if more.is_empty() {
            println!("leakcheck: clean");
            return ExitCode::SUCCESS;
        }
        if Instant::now() > deadline {
            println!("leakcheck: left behind:\n  {}", more.join("\n  "));
            return ExitCode::FAILURE;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
