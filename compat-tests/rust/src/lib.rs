//! What the Rust suites share: the report that `compat-tests/run` reads, one line a scenario.

use std::error::Error;
use std::time::{Duration, Instant};

/// The image that most scenarios use.
pub const BUSYBOX: &str = "compat-busybox:1";

/// What a scenario comes to.
pub type Outcome = Result<(), Box<dyn Error>>;

/// Runs one scenario and prints its line; a scenario whose name lacks the program's first argument is passed over.
pub async fn report(name: &str, scenario: impl Future<Output = Outcome>) {
    if std::env::args().nth(1).is_some_and(|only| !name.contains(&only)) {
        return;
    }
    let start = Instant::now();
    match scenario.await {
        Ok(()) => println!("ok\t{name}\t{:.2}", start.elapsed().as_secs_f64()),
        Err(err) => println!("red\t{name}\t{}", err.to_string().replace(['\n', '\t'], " ")),
    }
}

/// An error unless the two are equal.
pub fn equal<T: PartialEq + std::fmt::Debug>(got: T, want: T) -> Outcome {
    if got == want { Ok(()) } else { Err(format!("got {got:?}, not {want:?}").into()) }
}

/// An error unless `text` has `part`.
pub fn has(text: &str, part: &str) -> Outcome {
    if text.contains(part) { Ok(()) } else { Err(format!("no {part:?} in {text:?}").into()) }
}

/// Asks again until `ask` has a value; an error after half a minute.
pub async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> Result<T, Box<dyn Error>> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = ask().await {
            return Ok(value);
        }
        if Instant::now() > deadline {
            return Err(format!("not within 30 s: {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
