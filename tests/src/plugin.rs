//! A plugin as others write them: HTTP on a socket in the folder where engines look.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// Where engines look.
const SOCKETS: &str = "/run/docker/plugins";

/// How many plugins of this process have their sockets there; the folder goes with the last.
static THERE: Mutex<usize> = Mutex::new(0);

/// A plugin that answers from a thread of its own, and what it was asked.
pub struct Plugin {
    /// Its name.
    pub name: String,
    socket: PathBuf,
    calls: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Plugin {
    /// Starts one of that name. `answer` is given the method and the arguments.
    pub fn start(
        name: &str,
        interface: &str,
        answer: impl Fn(&str, &Value) -> Value + Send + Sync + 'static,
    ) -> Self {
        let socket = Path::new(SOCKETS).join(format!("{name}.sock"));
        let listener = {
            let mut there = THERE.lock().expect("the count");
            std::fs::create_dir_all(SOCKETS).expect("the folder of plugins");
            *there += 1;
            UnixListener::bind(&socket).expect("the plugin's socket")
        };
        let calls: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let (seen, interface) = (Arc::clone(&calls), interface.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let Some((method, args)) = read(&stream) else { continue };
                if method == "stop" {
                    return;
                }
                let told = if method == "Plugin.Activate" {
                    json!({ "Implements": [interface] })
                } else {
                    seen.lock().expect("calls").push((method.clone(), args.clone()));
                    answer(&method, &args)
                };
                write(&stream, &told);
            }
        });
        Self { name: name.to_owned(), socket, calls }
    }

    /// The methods that were called, with their arguments.
    pub fn calls(&self) -> Vec<(String, Value)> {
        self.calls.lock().expect("calls").clone()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if let Ok(mut stream) = UnixStream::connect(&self.socket) {
            let _ = stream.write_all(b"POST /stop HTTP/1.1\r\n\r\n");
        }
        let _ = std::fs::remove_file(&self.socket);
        if let Ok(mut there) = THERE.lock() {
            *there -= 1;
            if *there == 0 {
                let _ = std::fs::remove_dir(SOCKETS);
            }
        }
    }
}

fn read(stream: &UnixStream) -> Option<(String, Value)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let method = line.split(' ').nth(1)?.trim_start_matches('/').to_owned();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        match line.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().ok()?;
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((method, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

fn write(mut stream: &UnixStream, told: &Value) {
    let body = told.to_string();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // A caller that is gone does not read it.
    let _ = stream.write_all((head + &body).as_bytes());
}
