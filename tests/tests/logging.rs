//! Logs that go elsewhere arrive whole and in order, whoever is killed or away meanwhile, and `docker logs` shows them too.

use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use e2e_tests::lan::inside;
use e2e_tests::{Engine, wait_for};

/// Numbered lines until told to stop; the last line is the number of lines.
const COUNTER: &str = "n=0; trap 'stop=1' TERM; while [ -z \"$stop\" ]; do n=$((n+1)); echo line $n; usleep 2000; done; echo end $n";

/// What a target has heard: the lines, without what stands around them.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    fn add(&self, line: &str) {
        self.0.lock().expect("no panic").push(line.to_owned());
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no panic").clone()
    }

    fn count(&self) -> usize {
        self.0.lock().expect("no panic").len()
    }

    /// The highest number, after a look at the order: a line may come again when a connection or a daemon was lost, and then with all that follow
    /// it; none may be missing.
    fn highest(&self) -> usize {
        let (mut last, mut highest, mut again) = (0, 0, 0);
        for line in self.lines() {
            let Some(number) = line.strip_prefix("line ") else { continue };
            let number: usize = number.parse().expect("a number");
            assert!(number <= last + 1, "line {} is missing before {number}", last + 1);
            again += usize::from(number <= last);
            last = number;
            highest = highest.max(number);
        }
        assert!(again <= 3, "lines were sent again {again} times");
        highest
    }

    fn has(&self, line: &str) -> bool {
        self.0.lock().expect("no panic").iter().any(|heard| heard == line)
    }
}

/// A syslog daemon with a datagram socket. It checks what stands before each line.
fn syslog_datagrams(path: &Path, id: &str) -> Heard {
    let socket = UnixDatagram::bind(path).expect("bind");
    let (heard, id) = (Heard::default(), id.to_owned());
    let adds = heard.clone();
    std::thread::spawn(move || {
        let mut message = vec![0; 64 << 10];
        while let Ok(count) = socket.recv(&mut message) {
            let text = String::from_utf8(message[..count].to_vec()).expect("text");
            let (head, line) = text.split_once(" - ").expect("a head");
            let short = id.get(..12).unwrap_or_default();
            assert!(head.starts_with("<158>1 20") && head.ends_with(&format!(" {short}")), "{head}");
            adds.add(line.strip_suffix('\n').expect("a newline"));
        }
    });
    heard
}

/// A syslog daemon with a TCP socket in the engine's network namespace, which listens to one connection after the other. Gives its port.
fn syslog_tcp(engine: &Engine) -> (Heard, u16) {
    let listener = inside(&netns(engine), || TcpListener::bind("127.0.0.1:0").expect("bind"));
    let port = listener.local_addr().expect("an address").port();
    let heard = Heard::default();
    let adds = heard.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            for line in std::io::BufReader::new(stream).lines().map_while(Result::ok) {
                let (head, text) = line.split_once("]: ").expect("a head");
                assert!(head.starts_with("<30>") && head.contains(" tcp["), "{head}");
                adds.add(text);
            }
        }
    });
    (heard, port)
}

fn netns(engine: &Engine) -> PathBuf {
    Path::new("/run/netns").join(engine.netns().name())
}

/// A fluentd with a local socket, there until it is dropped. It listens to one connection after the other, and confirms what it is asked to.
struct Fluentd {
    path: PathBuf,
    /// The connection it listens to; `None` when it is going away.
    open: Arc<Mutex<Option<Vec<UnixStream>>>>,
    thread: Option<JoinHandle<()>>,
}

impl Fluentd {
    fn listen(path: &Path, heard: &Heard) -> Self {
        let listener = UnixListener::bind(path).expect("bind");
        let open = Arc::new(Mutex::new(Some(Vec::new())));
        let (streams, heard) = (Arc::clone(&open), heard.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                match &mut *streams.lock().expect("no panic") {
                    Some(open) => *open = vec![stream.try_clone().expect("a second handle")],
                    None => return,
                }
                hear(stream, &heard);
            }
        });
        Self { path: path.to_owned(), open, thread: Some(thread) }
    }
}

impl Drop for Fluentd {
    fn drop(&mut self) {
        let streams = self.open.lock().map(|mut open| open.take());
        for stream in streams.ok().flatten().into_iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the thread, which ends with its listener.
        let _ = UnixStream::connect(&self.path);
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = std::fs::remove_file(&self.path);
    }
}

fn hear(mut stream: UnixStream, heard: &Heard) {
    let mut pending = Vec::new();
    let mut part = [0; 16 << 10];
    while let Ok(count) = stream.read(&mut part) {
        if count == 0 {
            return;
        }
        pending.extend_from_slice(&part[..count]);
        let mut at = 0;
        while let Some((line, chunk, length)) = message(&pending[at..]) {
            heard.add(&line);
            at += length;
            let Some(chunk) = chunk else { continue };
            let mut ack = b"\x81\xa3ack".to_vec();
            ack.push(0xa0 | u8::try_from(chunk.len()).expect("a short chunk"));
            ack.extend_from_slice(chunk.as_bytes());
            if stream.write_all(&ack).is_err() {
                return;
            }
        }
        pending.drain(..at);
    }
}

/// Takes a message of the forward protocol apart: the line, the chunk to confirm, and the message's length. `None` while it is not whole.
fn message(bytes: &[u8]) -> Option<(String, Option<String>, usize)> {
    let mut rest = bytes;
    assert!(take(&mut rest, 1)? == [0x94], "no message of four parts");
    text(&mut rest)?;
    match take(&mut rest, 1)?[0] {
        0xd7 => drop(take(&mut rest, 9)?),
        0xd2 => drop(take(&mut rest, 4)?),
        other => panic!("no time: {other:#x}"),
    }
    let mut pairs = || -> Option<Vec<(String, String)>> {
        let head = take(&mut rest, 1)?[0];
        assert_eq!(head & 0xf0, 0x80, "no map");
        (0..head & 0x0f).map(|_| Some((text(&mut rest)?, text(&mut rest)?))).collect()
    };
    let (record, options) = (pairs()?, pairs()?);
    let field = |pairs: &[(String, String)], name: &str| {
        pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    };
    assert!(field(&record, "container_name").is_some_and(|name| name.starts_with('/')));
    assert_eq!(field(&record, "source").as_deref(), Some("stdout"));
    let line = field(&record, "log").expect("a line");
    Some((line, field(&options, "chunk"), bytes.len() - rest.len()))
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn text(rest: &mut &[u8]) -> Option<String> {
    let length = match take(rest, 1)?[0] {
        short @ 0xa0..=0xbf => usize::from(short & 0x1f),
        0xd9 => usize::from(take(rest, 1)?[0]),
        0xda => usize::from(u16::from_be_bytes(take(rest, 2)?.try_into().ok()?)),
        other => panic!("no text: {other:#x}"),
    };
    Some(String::from_utf8(take(rest, length)?.to_vec()).expect("text"))
}

#[test]
fn no_line_is_lost_on_its_way_whoever_is_killed_or_away() {
    let mut engine = Engine::start();
    engine.load_busybox();
    let run = |name: &str, options: &[&str], command: &str| -> String {
        let args = [&["run", "-d", "--name", name], options, &["busybox", "sh", "-c", command]].concat();
        engine.docker(&args).ok().to_owned()
    };
    let fluentd_heard = Heard::default();
    let (grams_path, fluentd_path) = (engine.path("grams"), engine.path("fluentd"));
    let fluentd = Fluentd::listen(&fluentd_path, &fluentd_heard);
    let (tcp, port) = syslog_tcp(&engine);
    // Create looks whether something is there; the socket comes when the id it checks is known.
    let address = format!("syslog-address=unixgram://{}", grams_path.display());
    std::fs::write(&grams_path, "").expect("something that is there");
    let options = ["--log-driver", "syslog", "--log-opt", &address, "--log-opt", "syslog-facility=local3"];
    let args = [
        &["create", "--name", "grams"],
        &options[..],
        &["--log-opt", "syslog-format=rfc5424micro", "busybox", "sh", "-c", COUNTER],
    ];
    let id = engine.docker(&args.concat()).ok().to_owned();
    std::fs::remove_file(&grams_path).expect("remove it");
    let grams = syslog_datagrams(&grams_path, &id);
    engine.docker(&["start", "grams"]).ok();
    let address = format!("syslog-address=tcp://127.0.0.1:{port}");
    let options = ["--log-driver", "syslog", "--log-opt", &address, "--log-opt", "tag={{.Name}}"];
    let tcp_id = run("tcp", &options, COUNTER);
    let address = format!("fluentd-address=unix://{}", fluentd_path.display());
    let options = ["--log-driver", "fluentd", "--log-opt", &address, "--log-opt", "fluentd-request-ack=true"];
    let fluentd_id = run("fluentd", &options, COUNTER);

    let all = [("grams", &grams), ("tcp", &tcp), ("fluentd", &fluentd_heard)];
    for (name, heard) in all {
        wait_for(&format!("lines of {name}"), || heard.count() > 50);
    }
    let logs = [&id, &tcp_id, &fluentd_id]
        .map(|id| engine.path("data/containers").join(id).join("container-cached.log"));
    let sizes = || logs.each_ref().map(|log| std::fs::metadata(log).map_or(0, |log| log.len()));
    let grown = |before: [u64; 3]| {
        wait_for("every container to go on printing", || {
            sizes().iter().zip(before).all(|(now, before)| *now > before + 2000)
        });
    };
    engine.kill_dockerd();
    grown(sizes());
    engine.spawn();
    for (name, heard) in all {
        let before = heard.count();
        wait_for(&format!("more lines of {name}"), || heard.count() > before + 50);
    }

    drop(fluentd);
    grown(sizes());
    assert_eq!(engine.inspect("fluentd", "{{.State.Running}}"), "true");
    let _fluentd = Fluentd::listen(&fluentd_path, &fluentd_heard);
    engine.docker(&["stop", "grams", "tcp", "fluentd"]).ok();
    for (name, heard) in all {
        let log = engine.docker(&["logs", name]).stdout;
        let count = log.lines().filter(|line| line.starts_with("line ")).count();
        let expected: String = (1..=count).map(|n| format!("line {n}\n")).collect();
        assert!(log == format!("{expected}end {count}\n"), "docker logs {name} is not whole");
        wait_for(&format!("the last line of {name}"), || heard.has(&format!("end {count}")));
        assert_eq!(heard.highest(), count, "{name}");
    }
    engine.docker(&["rm", "grams", "tcp", "fluentd"]).ok();
}

#[test]
fn what_falls_out_of_the_bounds_is_counted_and_options_are_checked() {
    const LINES: u64 = 5000;
    let engine = Engine::start();
    engine.load_busybox();
    let path = engine.path("fluentd");
    let address = format!("fluentd-address=unix://{}", path.display());
    let fluentd = |name: &str, more: &[&str]| {
        let options = ["run", "-d", "--name", name, "--log-driver", "fluentd", "--log-opt", &address];
        let command = format!("seq 1 {LINES}");
        engine.docker(&[&options[..], more, &["busybox", "sh", "-c", &command]].concat())
    };
    fluentd("refused", &[]).fails(
        127,
        &format!(
            "failed to initialize logging driver: dial unix {}: connect: no such file or directory",
            path.display()
        ),
    );
    let bounded = ["fluentd-async=true", "cache-max-size=8k", "cache-max-file=2", "cache-compress=false"];
    let bounded: Vec<&str> = bounded.iter().flat_map(|option| ["--log-opt", option]).collect();
    fluentd("bounded", &bounded).ok();
    assert_eq!(engine.docker(&["wait", "bounded"]).ok(), "0");
    let heard = Heard::default();
    let _fluentd = Fluentd::listen(&path, &heard);
    let last = LINES.to_string();
    wait_for("the last line", || heard.has(&last));
    let dropped = || -> u64 {
        let format = "{{index .Actor.Attributes \"lines\"}}";
        // `0s` would be the beginning of this second.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let until = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
        let events = ["events", "--since", "1", "--until", &until, "--filter", "event=log_dropped"];
        let events = engine.docker(&[&events[..], &["--format", format]].concat());
        events.ok().lines().map(|lines| lines.parse::<u64>().expect("a number")).sum()
    };
    let arrived: std::collections::BTreeSet<String> = heard.lines().into_iter().collect();
    let dropped = dropped();
    assert!(dropped > 0 && arrived.len() as u64 + dropped == LINES, "{} + {dropped}", arrived.len());
    let log = engine.docker(&["logs", "--tail", "2", "bounded"]);
    assert_eq!(log.stdout, format!("{}\n{LINES}\n", LINES - 1));

    fluentd("unread", &["--log-opt", "cache-disabled=true"]).ok();
    assert_eq!(engine.docker(&["wait", "unread"]).ok(), "0");
    engine.docker(&["logs", "unread"]).fails(1, "configured logging driver does not support reading");
    let refused = |driver: &str, option: &str, text: &str| {
        engine
            .docker(&["create", "--log-driver", driver, "--log-opt", option, "busybox", "true"])
            .fails(1, text);
    };
    refused("syslog", "bogus=1", "unknown log opt 'bogus' for syslog log driver");
    refused("syslog", "syslog-address=unix:///nonexist", "stat /nonexist: no such file or directory");
    refused("fluentd", "fluentd-async=odd", "strconv.ParseBool: parsing \"odd\": invalid syntax");
    refused("journald", "fluentd-async=true", "unknown log opt 'fluentd-async' for journald log driver");
    let plugins = engine.docker(&["info", "--format", "{{json .Plugins.Log}}"]);
    assert_eq!(plugins.ok(), r#"["fluentd","journald","json-file","local","syslog"]"#);
}
